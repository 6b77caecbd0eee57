"""A callback that ends the process in the middle of writing a checkpoint."""

import os
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class Torn(Callback):
    """Ends the process when a file of a checkpoint has grown to ``size`` bytes, for the first checkpoint after ``after``.

    Args:
        after: Optimizer steps that must be done.
        size: Bytes that are written before.
    """

    def __init__(self, after: int, size: int = 20_000) -> None:
        self.after = after
        self.size = size

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        save = torch.save

        def torn(checkpoint: Any, file: Any, **options: Any) -> None:
            if trainer.global_step >= self.after:
                file = _Short(file, self.size)
            save(checkpoint, file, **options)

        torch.save = torn


class _Short:
    """A file that takes the process with it once so many bytes are on disk."""

    def __init__(self, file: Any, size: int) -> None:
        self.file = file
        self.left = size

    def write(self, data: Any) -> int:
        self.left -= len(data)
        written: int = self.file.write(data)
        if self.left < 0:
            self.file.flush()
            os._exit(9)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)
