"""What is meant for other devices, and would fail late, be ignored, or be slow without a word."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import DeviceStatsMonitor
from lightning.pytorch.cli import SaveConfigCallback
from torch.optim import Optimizer


def check_trainer(trainer: Trainer, precision: str) -> None:
    """Raise ValueError if ``trainer`` has a precision of its own, would reorder the rows, or asks for device statistics."""
    connector, callbacks = trainer._accelerator_connector, trainer.callbacks  # type: ignore[attr-defined]
    given = [one.config.trainer.precision for one in callbacks if isinstance(one, SaveConfigCallback)]
    # Without a config, only the flag is known, which is 32-true also where nothing is set.
    flag, unset = (given[0], None) if given else (connector._precision_flag, "32-true")
    if flag not in (unset, precision):
        raise ValueError(
            f"trainer.precision is {flag}, but trainer.strategy.init_args.precision is {precision}; set trainer.precision "
            "to null"
        )
    if connector.use_distributed_sampler:
        raise ValueError(
            "trainer.use_distributed_sampler is true, but the rows are dealt out already, and it would shuffle them; set it "
            "to false"
        )
    if any(isinstance(callback, DeviceStatsMonitor) for callback in callbacks):
        raise ValueError(
            "trainer.callbacks has a DeviceStatsMonitor, which cannot read all devices as one; take it out"
        )


def check_rows(trainer: Trainer, devices: int) -> None:
    """Raise ValueError if hosts would have rows of different lengths, or devices would share the head's capacity.

    Args:
        trainer: Of a fit, with its data.
        devices: Over how many the rows of a micro-batch are divided.
    """
    data, module = trainer.datamodule, trainer.lightning_module  # type: ignore[attr-defined]
    objective: Any = module.objective  # type: ignore[union-attr]
    multiple = getattr(data, "canvas_multiple", None)
    if multiple is not None and trainer.world_size > 1:
        raise ValueError(
            f"data.init_args.canvas_multiple is {multiple}, with which each host would have rows of another length; set it "
            "to null"
        )
    hosts = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)
    rows = data.micro_batch * hosts / devices
    if objective.capacity is not None and rows % objective.capacity_rows:
        raise ValueError(
            f"model.objective.init_args.capacity_rows is {objective.capacity_rows}, but each device has {rows:g} rows of a "
            "micro-batch; choose a divisor, fewer trainer.accumulate_grad_batches, or capacity null"
        )


def check_model(module: Any) -> None:
    """Raise ValueError if ``model`` asks for what these devices cannot do, before it is built."""
    if module.objective.compile_loss:
        raise ValueError(
            "model.objective.init_args.compile_loss is true, but on XLA devices the whole step is compiled already; set it "
            "to false"
        )
    source = module.backbone_source
    if source.compile_layers:
        raise ValueError(
            "model.backbone.init_args.compile_layers is true, but on XLA devices the whole step is compiled already, and "
            "torch.compile cannot divide it; set it to false (trainer.strategy.init_args.scan_layers shortens compilation)"
        )
    if source.gradient_checkpointing == "selective":
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
