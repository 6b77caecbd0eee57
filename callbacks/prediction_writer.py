"""Predictions as text."""

import json
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from coda.steps import replicas


class PredictionWriter(BasePredictionWriter):
    """Appends what ``main.py predict`` generates to ``predictions-RANK.jsonl`` in the logger's folder, as it comes."""

    def __init__(self) -> None:
        super().__init__("batch")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new file."""
        self.path = Path(trainer.log_dir or trainer.default_root_dir) / f"predictions-{trainer.global_rank}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")

    def write_on_batch_end(self, trainer: Trainer, pl_module: LightningModule, prediction: Any, *_: Any) -> None:
        """Decode and append one batch; where a batch is one tensor of all hosts, the first of them does."""
        if replicas(trainer) == 1 and not trainer.is_global_zero:
            return
        decode = trainer.datamodule.tokenizer.decode  # type: ignore[attr-defined]
        rows = zip(prediction["reference"], prediction["sequences"], prediction["written"], strict=True)
        with self.path.open("a", encoding="utf-8") as file:
            for reference, sequence, written in rows:
                texts = {
                    "prompt": decode(reference[: int(written.long().argmax())]),  # not what fills up the row behind it
                    "completion": decode(sequence[written]),
                    "reference": decode(reference[written]),
                }
                file.write(json.dumps(texts) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where they are."""
        print(f"predictions are in {self.path}")
