"""Rows of conversations: what may be masked, how they are padded, and which one the n-th sample is."""

import shutil
from collections import Counter
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from coda.data import InstructionDataModule
from coda.data.chat import TEMPLATE
from coda.data.conversations import StandardLibraryFunctions
from coda.data.ingest import prepare
from tests.data.chats import Chats, chat_data, conversation

GROUPED = {"canvas_multiple": 8, "group_by_length": True}
LAYOUTS = [(1, 1, 0), (1, 2, 2), (2, 1, 0), (2, 2, 1), (4, 2, 2)]  # ranks, micro-batches per step, workers


def asked(data: InstructionDataModule, row: dict[str, Tensor]) -> tuple[str, str]:
    """Prompt and response of a row, padding included."""
    ids, prompt = row["input_ids"], int(row["maskable"].long().argmax())
    assert row["maskable"].tolist() == [False] * prompt + [True] * (len(ids) - prompt)
    return data.tokenizer.decode(ids[:prompt]), data.tokenizer.decode(ids[prompt:])


def numbers(rows: Any, samples: Any) -> list[int]:
    """Which conversations samples are."""
    return [rows.mixture.locate(rows._grouped(n) if rows.group else n).row for n in samples]


def lengths(rows: Any, samples: Any) -> list[int]:
    return [len(rows.streams[0].document(number)[0]) for number in numbers(rows, samples)]


@pytest.mark.parametrize("multiple", [None, 1, 7, 8, 200])
def test_only_the_prompt_is_never_masked(multiple: int | None, tmp_path: Path) -> None:
    """End of turn and padding are targets: they tell the model where to stop."""
    data = chat_data(tmp_path, canvas_multiple=multiple)
    rows = data.rows("train")
    for sample in range(len(rows)):
        row, (number,) = rows[sample], numbers(rows, [sample])
        (_, question), (_, answer) = conversation(number)
        length = len(rows.streams[0].document(number)[0])  # type: ignore[attr-defined]
        canvas = 96 if multiple is None else min(-(-length // multiple) * multiple, 96)
        assert row["input_ids"].shape == (canvas,)
        prompt, response = asked(data, row)
        assert prompt == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        assert response == f"{answer}<|im_end|>" + "<|endoftext|>" * (canvas - length)
        assert row["sample"] == sample
        assert [value.dtype for value in row.values()] == [torch.int64, torch.bool, torch.int64]


def test_a_truncated_conversation_fills_its_row_to_the_end(tmp_path: Path) -> None:
    data = chat_data(tmp_path, sequence_length=40, canvas_multiple=16)
    rows = data.rows("train")
    full = [sample for sample, length in enumerate(lengths(rows, range(40))) if length == 40]
    assert full
    for sample in full:
        row = rows[sample]
        assert len(row["input_ids"]) == 40
        assert row["input_ids"][-1] != data.tokenizer.pad_token_id
        assert row["maskable"][-1]


def test_full_rows_need_no_attention_mask(tmp_path: Path) -> None:
    rows = chat_data(tmp_path).rows("train")
    batch = rows.collate([rows[n] for n in range(4)])
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (4, 96),
        "maskable": (4, 96),
        "sample": (4,),
    }


def test_what_fills_up_a_batch_is_hidden_and_never_masked(tmp_path: Path) -> None:
    data = chat_data(tmp_path, canvas_multiple=8)
    rows = data.rows("train")
    alone = [rows[n] for n in range(8)]
    batch = rows.collate(alone)
    canvases = [len(row["input_ids"]) for row in alone]
    assert len(set(canvases)) > 1
    assert batch["input_ids"].shape == (8, max(canvases))
    for i, (row, canvas) in enumerate(zip(alone, canvases, strict=True)):
        assert batch["attention_mask"][i].tolist() == [True] * canvas + [False] * (max(canvases) - canvas)
        assert torch.equal(batch["input_ids"][i, :canvas], row["input_ids"])
        assert torch.equal(batch["maskable"][i, :canvas], row["maskable"])
        assert not batch["maskable"][i, canvas:].any()
        assert (batch["input_ids"][i, canvas:] == data.tokenizer.pad_token_id).all()


@pytest.mark.parametrize("options", [{}, GROUPED], ids=["in order", "grouped"])
def test_every_conversation_comes_once_per_pass(options: dict[str, Any], tmp_path: Path) -> None:
    rows = chat_data(tmp_path, **options).rows("train")
    assert len(rows) == 40
    for first in (0, 40, 80):
        assert sorted(numbers(rows, range(first, first + 40))) == list(range(40))
    assert numbers(rows, range(40)) != numbers(rows, range(40, 80)) != list(range(40))


def test_grouping_permutes_the_samples_of_a_window(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("coda.data.instruction.GROUPED_BATCHES", 3)
    plain, grouped = (chat_data(tmp_path, **options).rows("train") for options in ({}, GROUPED))
    for window in range(7):  # across the ends of passes
        samples = range(24 * window, 24 * window + 24)
        assert sorted(grouped._grouped(n) for n in samples) == list(samples)  # type: ignore[attr-defined]
        assert Counter(numbers(grouped, samples)) == Counter(numbers(plain, samples))
        batches = sorted(sorted(lengths(grouped, samples[i : i + 8])) for i in (0, 8, 16))
        assert list(chain.from_iterable(batches)) == sorted(
            lengths(plain, samples)
        )  # no batch reaches into the lengths of another


def test_the_batches_of_a_window_come_in_a_random_order(tmp_path: Path) -> None:
    rows = chat_data(tmp_path, count=128, **GROUPED).rows("train")
    means = [np.mean(lengths(rows, range(start, start + 8))) for start in range(0, 128, 8)]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)
    assert abs(np.corrcoef(means, range(16))[0, 1]) < 0.7


def test_grouping_leaves_less_to_fill_up(tmp_path: Path) -> None:
    def filler(**options: Any) -> int:
        rows = chat_data(tmp_path, count=128, **options).rows("train")
        batches = [rows.collate([rows[n] for n in range(start, start + 8)]) for start in range(0, 128, 8)]
        return int(sum((~batch["attention_mask"]).sum() for batch in batches))

    assert filler(**GROUPED) < filler(canvas_multiple=8) / 4


def test_samples_may_be_asked_for_in_any_order(tmp_path: Path) -> None:
    rows = chat_data(tmp_path, **GROUPED).rows("train")
    forwards = {n: rows[n]["input_ids"].tolist() for n in range(120)}
    again = chat_data(tmp_path, **GROUPED).rows("train")
    for n in np.random.default_rng(0).permutation(120).tolist():
        assert again[n]["input_ids"].tolist() == forwards[n]


def test_another_seed_is_another_order(tmp_path: Path) -> None:
    one, other = (chat_data(tmp_path, seed=seed, **GROUPED).rows("train") for seed in (0, 1))
    assert numbers(one, range(40)) != numbers(other, range(40))


def dealt(data: InstructionDataModule, ranks: int, accumulate: int, workers: int) -> list[list[tuple[int, str]]]:
    """Number and text of the rows of each optimizer step, over all ranks and micro-batches, behind step 3."""
    steps: list[list[tuple[int, str]]] = [[] for _ in range(5)]
    data.num_workers = workers
    for rank in range(ranks):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        place = {"world_size": ranks, "global_rank": rank, "accumulate_grad_batches": accumulate, "global_step": 3}
        data.trainer = SimpleNamespace(strategy=strategy, distributed_sampler_kwargs=None, **place)  # type: ignore[assignment]
        for i, batch in enumerate(data.train_dataloader()):
            texts = data.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
            steps[i // accumulate] += zip(batch["sample"].tolist(), texts, strict=True)
    return [sorted(step) for step in steps]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, GROUPED], ids=["in order", "grouped"])
def test_the_order_is_the_same_for_any_ranks_and_workers(options: dict[str, Any], tmp_path: Path) -> None:
    whole = dealt(chat_data(tmp_path, **options), *LAYOUTS[0])
    assert [[n for n, _ in step] for step in whole] == [list(range(8 * i, 8 * i + 8)) for i in range(3, 8)]
    for layout in LAYOUTS[1:]:
        assert dealt(chat_data(tmp_path, **options), *layout) == whole


def test_held_out_conversations_come_in_order_whatever_the_grouping(tmp_path: Path) -> None:
    data = chat_data(tmp_path, val_fraction=0.3, **GROUPED)
    rows = data.rows("val")
    assert 4 < len(rows) < 20
    assert numbers(rows, range(len(rows))) == list(range(len(rows)))
    (trained, held_out) = (data.store.stream("texts", split) for split in ("train", "val"))
    texts = {
        data.tokenizer.decode(stream.document(i)[0]) for stream in (trained, held_out) for i in range(stream.documents)
    }
    assert len(texts) == trained.documents + held_out.documents == 40


@pytest.mark.parametrize("options", [{}, GROUPED], ids=["in order", "grouped"])
def test_a_prepared_store_gives_the_same_rows(options: dict[str, Any], tmp_path: Path) -> None:
    here = chat_data(tmp_path, val_fraction=0.3, **options)
    prepare(here.plan(), tmp_path / "store")
    shutil.rmtree(tmp_path / "cache" / "corpora", ignore_errors=True)
    there = chat_data(tmp_path, val_fraction=0.3, prepared=str(tmp_path / "store"), **options)
    assert there.tokenizer.chat_template == TEMPLATE
    for split in ("train", "val"):
        ours, theirs = here.rows(split), there.rows(split)
        assert len(ours) == len(theirs)
        for n in range(len(ours)):
            assert all(torch.equal(ours[n][name], theirs[n][name]) for name in ours[n])


@pytest.mark.parametrize("change", [{"sequence_length": 64}, {"sequence_length": 128}, {"too_long": "drop"}], ids=str)
def test_a_store_of_other_lengths_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    prepare(chat_data(tmp_path).plan(), tmp_path / "store")
    with pytest.raises(ValueError, match=r"data\.prepared .*store was written with .*96.*; set them alike"):
        chat_data(tmp_path, prepared=str(tmp_path / "store"), **change).rows("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canvas_multiple": 0}, r"data\.canvas_multiple is 0; give 1 or more"),
        ({"canvas_multiple": -8}, r"data\.canvas_multiple is -8"),
        ({"group_by_length": True}, r"data\.group_by_length saves nothing .*; set canvas_multiple"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        chat_data(tmp_path, **options)


def test_the_default_is_functions_of_the_standard_library(tmp_path: Path) -> None:
    (source,) = chat_data(tmp_path, sources=None).default_sources()
    assert type(source) is StandardLibraryFunctions


def test_a_mixture_of_conversations_reads_each_by_its_epochs(tmp_path: Path) -> None:
    sources = [Chats(12, corpus="a", epochs=2), Chats(16, corpus="b")]
    rows = chat_data(tmp_path, sources=sources, **GROUPED).rows("train")
    assert len(rows) == 40
    places = Counter(rows.mixture.locate(rows._grouped(n))[::2] for n in range(40))  # type: ignore[attr-defined]
    assert places == Counter({(0, row): 2 for row in range(12)} | {(1, row): 1 for row in range(16)})


def test_resuming_in_another_grouping_is_refused(tmp_path: Path) -> None:
    """It is another order, in which some conversations would be read again and others never."""
    plain, grouped = chat_data(tmp_path, canvas_multiple=8), chat_data(tmp_path, **GROUPED)
    for data in (plain, grouped):
        state = SimpleNamespace(fn=TrainerFn.FITTING)
        data.trainer = SimpleNamespace(global_step=2, state=state)  # type: ignore[assignment]
    grouped.load_state_dict(grouped.state_dict())
    with pytest.raises(ValueError, match="group_by_length was True, is False"):
        plain.load_state_dict(grouped.state_dict())
