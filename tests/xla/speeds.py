"""What is logged of the speed of training, on a clock of its own and on chips of any kind; for the program of the rules."""

from typing import Any
from unittest import mock

import torch_xla.runtime as xr
from lightning import Callback, Trainer

from callbacks import Throughput
from tests.xla.fits import fit, strategy


class Clock:
    """A step takes two seconds."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Rates(Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seen: dict[str, float] = {}
        self.flops = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.clock.now += 2
        self.flops = pl_module.flops(8, 32)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.seen = {name: float(value) for name, value in trainer.callback_metrics.items() if "throughput" in name}


def peak(chip: Any) -> float | None:
    """Of four chips of some kind; ``chip`` answers what they are."""
    with (
        mock.patch("torch_xla._internal.tpu.get_tpu_type", chip),
        mock.patch.object(xr, "device_type", return_value="TPU"),
    ):
        return strategy("1,4,1").available_flops()


def speed(flops: float | None) -> dict[str, float]:
    """What is logged of the speed on devices that can do ``flops`` together."""
    rates, chosen = Rates(Clock()), strategy("1,4,1")
    with (
        mock.patch("callbacks.throughput.time", rates.clock),
        mock.patch.object(chosen, "available_flops", return_value=flops),
    ):
        fit(chosen, rates, Throughput(), max_steps=3, log_every_n_steps=1)
    return rates.seen | {"flops": rates.flops}


def speeds() -> dict[str, Any]:
    def unreachable() -> str:
        raise OSError("no metadata server")

    peaks = {chip: peak(lambda chip=chip: chip) for chip in ("v4", "v5p", "v9")}
    peaks |= {"unreachable": peak(unreachable), "CPU": strategy("1,4,1").available_flops()}
    return {"peaks": peaks, "known": speed(peaks["v4"]), "unknown": speed(None)}
