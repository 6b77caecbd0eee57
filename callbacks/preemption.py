"""Preemption: save and leave when the machine is taken away, so that the same command goes on where it stopped."""

import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from coda.checkpoint import WholeFileIO
from coda.steps import ends_step

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again


class Preemption(Callback):
    """On SIGTERM, writes ``last.ckpt`` behind the current optimizer step and exits with code 75.

    The signal may reach any of the ranks, at any time. They agree on the step through an all-reduce between CPUs, which
    runs beside the next step: nobody waits for a device. The checkpoint is that of the step after the agreement. Also
    has all checkpoints written whole or not at all.
    """

    def __init__(self) -> None:
        self.received = self.saved = False
        self.group: Any = None
        self.asked: tuple[torch.Tensor, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of Lightning's way of writing files."""
        with suppress(NotImplementedError):  # strategies that shard write folders in a way of their own
            if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
                trainer.strategy.checkpoint_io = WholeFileIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen; Lightning's own handler, which stops ranks at different steps, is restored with all others at the end."""
        self.received, self.saved, self.asked = False, False, None
        if trainer.is_global_zero:
            for unfinished in _folder(trainer).glob(".*.ckpt.*"):  # of a process that was killed while it wrote
                _clean(unfinished)
        signal.signal(signal.SIGTERM, self._receive)
        if torch.distributed.is_available() and torch.distributed.is_initialized() and trainer.world_size > 1:
            self.group = torch.distributed.new_group(backend="gloo")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the checkpoint once all ranks know."""
        if not self.saved and ends_step(trainer, batch_idx) and self._agreed():
            path = _folder(trainer) / "last.ckpt"
            trainer.save_checkpoint(path)
            self.saved = True
            rank_zero_info(f"terminated: wrote {path}; the same command with --ckpt_path last goes on from there")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave, now that the metrics of the last step are written.

        Raises:
            SystemExit: With code 75; with 0 on processes that another one on this machine started and watches, which
                would take anything else for a crash.
        """
        if self.saved:
            raise SystemExit(EXIT_CODE if trainer.local_rank == 0 else 0)

    def _receive(self, signum: int, frame: Any) -> None:
        self.received = True

    def _agreed(self) -> bool:
        if self.group is None:
            return self.received
        agreed = False
        if self.asked is not None:
            answer, work = self.asked
            work.wait()
            agreed = bool(answer)
        question = torch.tensor(int(self.received))
        work = torch.distributed.all_reduce(question, torch.distributed.ReduceOp.MAX, group=self.group, async_op=True)
        self.asked = question, work
        return agreed


def _clean(unfinished: Path) -> None:
    """Remove what a killed process left, but keep a checkpoint that it had not replaced yet."""
    kept = unfinished.with_name(unfinished.stem[1:])
    if unfinished.suffix == ".old" and not kept.exists():
        unfinished.rename(kept)
    elif unfinished.is_dir():
        shutil.rmtree(unfinished)
    else:
        unfinished.unlink()


def _folder(trainer: Trainer) -> Path:
    """Where the run keeps its checkpoints."""
    callback = trainer.checkpoint_callback
    folder = callback.dirpath if isinstance(callback, ModelCheckpoint) else None
    return Path(folder or trainer.default_root_dir)
