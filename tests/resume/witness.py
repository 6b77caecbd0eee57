"""A callback that writes down what a process reads, and ends it at a chosen moment."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Witness(Callback):
    """Appends ``STEP: SAMPLE SAMPLE ...`` to a file of this process for every micro-batch; STEP counts the steps done.

    Args:
        folder: Where to.
        end: Signal that the process sends itself.
        after: When this many optimizer steps are done; 0 is never.
        rank: Only this rank does.
    """

    def __init__(self, folder: str, end: str = "SIGKILL", after: int = 0, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.end = end
        self.after = after
        self.rank = rank
        self.started = time.time_ns()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = " ".join(map(str, batch["sample"].tolist()))
        with (self.folder / f"{self.started}-rank-{trainer.global_rank}.txt").open("a") as file:
            file.write(f"{trainer.global_step}: {numbers}\n")
        if self.after and trainer.global_step == self.after and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.Signals[self.end])
