"""Predictions as text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import PredictionWriter
from tests.conftest import Tiny


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
