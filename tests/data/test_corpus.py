"""The data module: batches, their size, and the settings that cannot work."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from coda.data import CorpusDataModule
from tests.conftest import Tiny
from tests.data.conftest import Texts

TEXTS = [f"def f{i}(x):\n    return x * {i}\n" for i in range(60)]


def attached(
    data: CorpusDataModule, ranks: int = 1, accumulate: int = 1, rank: int = 0, step: int = 0
) -> CorpusDataModule:
    """A data module as rank ``rank`` of a trainer has it."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=ranks,
        global_rank=rank,
        global_step=step,
        accumulate_grad_batches=accumulate,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        distributed_sampler_kwargs=None,
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=False),
    )
    return data


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_have_the_documented_shapes(tiny: Tiny, split: str, segments: bool) -> None:
    data = attached(tiny.data(segments=segments))
    loader: Any = getattr(data, f"{split}_dataloader")()
    shapes = {"input_ids": torch.int64, "maskable": torch.bool, "sample": torch.int64}
    shapes |= {"segment_ids": torch.int64} if segments else {}
    batches = list(loader)
    assert len(batches) == len(loader) > 0
    for batch in batches:
        assert {name: value.dtype for name, value in batch.items()} == shapes
        assert {name: tuple(value.shape) for name, value in batch.items() if name != "sample"} == dict.fromkeys(
            [name for name in shapes if name != "sample"], (4, 32)
        )
    assert torch.cat([batch["sample"] for batch in batches]).tolist() == list(range(4 * len(batches)))


@pytest.mark.parametrize(("ranks", "accumulate", "micro"), [(1, 1, 24), (2, 1, 12), (1, 3, 8), (4, 2, 3)])
def test_the_micro_batch_follows_from_the_global_batch(tiny: Tiny, ranks: int, accumulate: int, micro: int) -> None:
    assert attached(tiny.data(8, global_batch_size=24), ranks, accumulate).micro_batch == micro


@pytest.mark.parametrize(("ranks", "accumulate"), [(3, 1), (1, 3), (2, 4)])
def test_a_global_batch_that_cannot_be_divided_is_refused(tiny: Tiny, ranks: int, accumulate: int) -> None:
    data = attached(tiny.data(global_batch_size=4), ranks, accumulate)
    with pytest.raises(ValueError, match=rf"global_batch_size is 4, which {ranks} ranks .* {accumulate} do not divide"):
        data.setup("fit")


def rows_of(loader: Any) -> list[list[int]]:
    return [row for batch in loader for row in batch["input_ids"].tolist()]


def test_held_out_rows_come_in_order(tiny: Tiny) -> None:
    data = attached(tiny.data())
    rows = data.rows("val")
    expected = [rows[i]["input_ids"].tolist() for i in range(len(rows) // 4 * 4)]
    assert rows_of(data.val_dataloader()) == rows_of(data.test_dataloader()) == expected
    assert rows_of(data.predict_dataloader()) == expected


def test_training_rows_are_shuffled_by_the_seed(tiny: Tiny) -> None:
    one, again, other = (rows_of(attached(tiny.data(seed=seed)).train_dataloader()) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert one != sorted(one)


def test_ranks_share_out_the_rows(tiny: Tiny) -> None:
    whole = rows_of(attached(tiny.data()).train_dataloader())
    shares = [rows_of(attached(tiny.data(), ranks=2, rank=rank).train_dataloader()) for rank in range(2)]
    assert shares[0][:2] + shares[1][:2] == whole[:4]
    assert sorted(shares[0] + shares[1]) == sorted(whole)


def test_worker_processes_keep_the_order(tiny: Tiny) -> None:
    own, workers = (attached(tiny.data(num_workers=count)) for count in (0, 2))
    loaders = [data.train_dataloader() for data in (own, workers)]
    first = rows_of(loaders[0])
    assert rows_of(loaders[1]) == first
    for data in (own, workers):
        data.trainer.global_step = 10  # type: ignore[union-attr]
    second = rows_of(loaders[0])
    assert rows_of(loaders[1]) == second != first
    rows = own.rows("train")
    assert second == [rows[sample]["input_ids"].tolist() for sample in range(40, 40 + len(second))]


def test_each_rank_reads_whole_optimizer_steps(tiny: Tiny) -> None:
    """39 rows of 32: with 6 in a batch, the 3 left over are no step of their own under accumulation."""
    data = attached(tiny.data(global_batch_size=6), accumulate=3)
    assert len(data.rows("train")) == 39
    assert len(data.train_dataloader()) == 18


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": 1}, r"data\.sequence_length is 1; a row needs at least 2"),
        ({"sequence_length": -5}, r"data\.sequence_length is -5"),
        ({"global_batch_size": 0}, r"data\.global_batch_size is 0; it needs at least 1"),
        ({"val_fraction": -0.1}, r"data\.val_fraction is -0.1"),
        ({"val_fraction": 1.0}, r"data\.val_fraction is 1.0"),
        ({"sources": []}, r"data\.sources is empty; list at least one corpus, or null"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_work_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorpusDataModule(**{"sequence_length": 8, "global_batch_size": 1, **options})


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_corpus_shorter_than_a_batch_says_by_how_much(tmp_path: Path, split: str) -> None:
    fraction = 0.001 if split == "val" else 0.0
    size = 1 if split == "val" else 512
    data = CorpusDataModule(16, size, [Texts(TEXTS)], vocab_size=270, val_fraction=fraction, cache_dir=str(tmp_path))
    tokens = data.store.tokens(split)
    numbers = rf"the {split} split has {tokens} tokens, {tokens // 16} rows of data.sequence_length 16, fewer than the"
    with pytest.raises(ValueError, match=rf"\A{numbers} {size} rows of one batch; [^\n]+\Z") as error:
        attached(data).setup("fit")
    assert "lower data.global_batch_size" in str(error.value)
    assert ("data.val_fraction" in str(error.value)) == (split == "val")


def test_a_corpus_of_part_of_a_step_is_too_short_under_accumulation(tmp_path: Path) -> None:
    """It would fill micro-batches, but no optimizer step."""
    data = CorpusDataModule(16, 512, [Texts(TEXTS)], vocab_size=270, val_fraction=0.0, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="fewer than the 512 rows of one batch"):
        attached(data, accumulate=512).setup("fit")


def test_evaluation_does_not_need_rows_to_train_on(tmp_path: Path) -> None:
    data = CorpusDataModule(16, 8, [Texts(TEXTS)], vocab_size=270, val_fraction=0.95, cache_dir=str(tmp_path))
    attached(data).setup("validate")


def test_a_second_sampler_around_the_rows_is_refused(tiny: Tiny) -> None:
    data = attached(tiny.data(), ranks=2)
    data.trainer._accelerator_connector.use_distributed_sampler = True  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"trainer\.use_distributed_sampler is true.*set it to false"):
        data.setup("fit")


def test_nothing_held_out_trains_without_validation(tiny: Tiny) -> None:
    trainer = tiny.trainer(max_steps=2, val_check_interval=1)
    trainer.fit(tiny.module(), tiny.data(val_fraction=0.0))
    assert trainer.global_step == 2
    assert "val/bound" not in trainer.callback_metrics


def test_a_fit_validates_on_the_held_out_rows(tiny: Tiny) -> None:
    trainer = tiny.fit(max_steps=2, val_check_interval=2)
    bound: Tensor = trainer.callback_metrics["val/bound"]
    assert 0 < float(bound) < 20
    assert trainer.num_val_batches == [len(trainer.datamodule.rows("val")) // 4]  # type: ignore[attr-defined]


def test_a_row_longer_than_the_model_is_refused_before_training(tiny: Tiny) -> None:
    trainer = tiny.trainer(max_steps=2)
    with pytest.raises(ValueError, match=r"data\.sequence_length is 256, but the model has 128 positions"):
        trainer.fit(tiny.module(), tiny.data(256, 1, val_fraction=0.0))
