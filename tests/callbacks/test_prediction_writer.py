"""Predictions as text."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import PredictionWriter
from tests.conftest import Tiny
from tests.data.chats import chat_data, conversation


@pytest.fixture
def predicted(tiny: Tiny) -> tuple[list[dict[str, str]], list[dict[str, torch.Tensor]], Any]:
    """Lines of the file, what the module predicted, and the data."""
    trainer, data = tiny.trainer(PredictionWriter()), tiny.data(sequence_length=16)
    for _ in range(2):  # the second run starts a new file
        predictions = trainer.predict(tiny.module(), data)
    lines = (Path(trainer.log_dir or "") / "predictions-0.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], predictions or [], data  # type: ignore[return-value]


def test_every_held_out_row_is_a_line(predicted: Any) -> None:
    lines, _, data = predicted
    assert len(lines) == len(data.rows("val")) // 4 * 4
    assert {tuple(line) for line in lines} == {("prompt", "completion", "reference")}


def test_prompt_and_reference_are_the_halves_of_the_row(predicted: Any) -> None:
    lines, _, data = predicted
    rows = data.rows("val")
    for i, line in enumerate(lines):
        ids = rows[i]["input_ids"]
        assert line["prompt"] == data.tokenizer.decode(ids[:8])
        assert line["reference"] == data.tokenizer.decode(ids[8:])


def test_the_completion_is_what_the_model_wrote_behind_the_prompt(predicted: Any) -> None:
    lines, predictions, data = predicted
    sequences = torch.cat([prediction["sequences"] for prediction in predictions])
    assert [line["completion"] for line in lines] == data.tokenizer.batch_decode(sequences[:, 8:])
    assert sequences.shape == (len(lines), 16)
    assert not (sequences == data.tokenizer.mask_token_id).any()


def test_it_says_where_they_are(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = tiny.trainer(PredictionWriter(), limit_predict_batches=1, logger=False)
    trainer.predict(tiny.module(), tiny.data(sequence_length=16))
    assert f"predictions are in {tiny.folder / 'predictions-0.jsonl'}" in capsys.readouterr().out
    assert len((tiny.folder / "predictions-0.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("multiple", [None, 8], ids=["full rows", "filled up"])
def test_of_conversations_the_model_writes_the_response(tiny: Tiny, multiple: int | None) -> None:
    """The prompt has nothing of what fills up a batch, and the texts nothing of each other."""
    data = chat_data(tiny.folder, count=60, val_fraction=0.4, canvas_multiple=multiple)
    trainer = tiny.trainer(PredictionWriter())
    predictions: Any = trainer.predict(tiny.module(), data)
    lines = (Path(trainer.log_dir or "") / "predictions-0.jsonl").read_text().splitlines()
    rows = data.rows("val")
    assert len(lines) == len(rows) // 8 * 8
    sequences = [sequence for batch in predictions for sequence in batch["sequences"]]
    for i, line in enumerate(lines):
        texts, row = json.loads(line), rows[i]
        number = int(texts["prompt"].partition("Give ")[2].partition(".")[0])
        (_, question), (_, answer) = conversation(number)
        start, stop = int(row["maskable"].long().argmax()), len(row["input_ids"])
        assert texts["prompt"] == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        assert texts["reference"] == data.tokenizer.decode(row["input_ids"][start:])
        assert texts["reference"].startswith(f"{answer}<|im_end|>")
        assert texts["completion"] == data.tokenizer.decode(sequences[i][start:stop])
        assert torch.equal(sequences[i][:start], row["input_ids"][:start])
        assert (sequences[i][stop:] == data.tokenizer.pad_token_id).all()


@pytest.mark.parametrize(("replicas", "rank", "written"), [(1, 0, True), (1, 1, False), (2, 1, True)])
def test_one_process_writes_where_a_batch_is_that_of_all(
    tmp_path: Path, replicas: int, rank: int, written: bool
) -> None:
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(replicas=replicas),
        world_size=2,
        is_global_zero=rank == 0,
        global_rank=rank,
        log_dir=str(tmp_path),
        datamodule=SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: str(ids.tolist()))),
    )
    ids = torch.arange(4)[None]
    prediction = {"reference": ids, "sequences": ids, "written": ids > 1}
    writer, module = PredictionWriter(), None
    writer.on_predict_start(trainer, module)  # type: ignore[arg-type]
    writer.write_on_batch_end(trainer, module, prediction)  # type: ignore[arg-type]
    assert bool((tmp_path / f"predictions-{rank}.jsonl").read_text()) == written
