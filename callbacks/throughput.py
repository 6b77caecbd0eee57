"""Speed of training: tokens per second and model FLOPs utilisation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.throughput import Throughput as Window
from lightning.fabric.utilities.throughput import get_available_flops

from callbacks.steps import is_logging_step
from coda.steps import replicas


class Throughput(Callback):
    """Logs ``throughput/tokens_per_sec`` over all devices and, where the device's peak is known, ``throughput/mfu``.

    Lightning's ThroughputMonitor waits for the device after every batch; this one only on logging steps. Time spent in
    validation and sampling does not count.
    """

    def __init__(self) -> None:
        self.clock = 0.0
        self.paused_at = 0.0
        self.batches = self.samples = self.tokens = 0
        self.flops = 0.0
        self.replicas = 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        device = trainer.strategy.root_device
        peak = get_available_flops(device, _compute_dtype(trainer)) if device.type == "cuda" else None
        if device.type == "xla":
            peak = trainer.strategy.available_flops()  # type: ignore[attr-defined]
        self.replicas = replicas(trainer)
        self.window = Window(available_flops=peak, world_size=self.replicas, window_size=2)
        self.clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; read the clock on logging steps."""
        rows, length = batch["input_ids"].shape
        self.batches += 1
        self.samples += rows
        self.tokens += rows * length
        self.flops += pl_module.flops(rows, length)  # type: ignore[operator]
        if not is_logging_step(trainer, batch_idx):
            return
        _wait_for(trainer.strategy.root_device)
        self.window.update(
            time=time.perf_counter() - self.clock,
            batches=self.batches,
            samples=self.samples,
            lengths=self.tokens,
            flops=int(self.flops),
        )
        self.flops = 0.0
        rates = self.window.compute()
        if "device/items_per_sec" in rates:
            pl_module.log("throughput/tokens_per_sec", rates["device/items_per_sec"] * self.replicas)
        if "device/mfu" in rates:
            pl_module.log("throughput/mfu", rates["device/mfu"])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        _wait_for(trainer.strategy.root_device)
        self.paused_at = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it run on."""
        self.clock += time.perf_counter() - self.paused_at


@contextmanager
def paused(trainer: Trainer) -> Iterator[None]:
    """Keep what happens inside out of the throughput of training."""
    _wait_for(trainer.strategy.root_device)
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.clock += seconds


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "xla":
        from coda.xla.hardware import wait_for_devices

        wait_for_devices()


def _compute_dtype(trainer: Trainer) -> torch.dtype:
    precision = str(trainer.precision)
    if "bf16" in precision:
        return torch.bfloat16
    return torch.float16 if "16" in precision else torch.float32
