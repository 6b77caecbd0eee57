"""What is meant for other devices, and would fail late, be ignored, or be slow without a word."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import DeviceStatsMonitor
from torch.optim import Optimizer


def check_trainer(trainer: Trainer, precision: str) -> None:
    """Raise ValueError if ``trainer`` has a precision of its own, would reorder the rows, or asks for device statistics."""
    connector = trainer._accelerator_connector
    flag = connector._precision_flag  # 32-true also where nothing is set
    if flag not in ("32-true", precision):
        raise ValueError(
            f"trainer.precision is {flag}, but trainer.strategy.init_args.precision is {precision}; set trainer.precision "
            "to null"
        )
    if connector.use_distributed_sampler:
        raise ValueError(
            "trainer.use_distributed_sampler is true, but the rows are dealt out already, and it would shuffle them; set it "
            "to false"
        )
    if any(isinstance(callback, DeviceStatsMonitor) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "trainer.callbacks has a DeviceStatsMonitor, which cannot read all devices as one; take it out"
        )


def check_backbone(module: Any) -> None:
    """Raise ValueError if ``model.backbone`` asks for what these devices cannot do, before it is built."""
    source = getattr(module, "backbone_source", None)
    if getattr(source, "compile_layers", False):
        raise ValueError(
            "model.backbone.init_args.compile_layers is true, but on XLA devices the whole step is compiled already, and "
            "torch.compile cannot divide it; set it to false (trainer.strategy.init_args.scan_layers shortens compilation)"
        )
    if getattr(source, "gradient_checkpointing", False) == "selective":
        raise ValueError(
            "model.backbone.init_args.gradient_checkpointing is selective, which XLA devices do not know; set it to false, "
            "and trainer.strategy.init_args.gradient_checkpointing to true"
        )


def check_optimizers(optimizers: Iterable[Optimizer]) -> None:
    """Raise ValueError for an optimizer that reads numbers off the device for every weight."""
    if any(isinstance(optimizer, torch.optim.Adafactor) for optimizer in optimizers):
        raise ValueError(
            "model.optimizer is torch.optim.Adafactor, which waits for the device twice per weight; set it to "
            "transformers.Adafactor with relative_step, scale_parameter and warmup_init false"
        )
