"""A program: fits with all monitors while every schedule moves, in which a hidden wait for the device raises."""

import json
from contextlib import suppress
from typing import Any

import torch
import torch_xla
import torch_xla.debug.metrics as metrics
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks import DiffusionMonitor, GradientNorm, Preemption, Throughput
from callbacks.steps import is_logged
from coda.masking import Linear, PerEpoch, ProgressiveMasking
from coda.xla import XLASPMDStrategy
from tests.xla.fits import adafactor, adamw, data, folder, module, strategy, trainer

STEPS, EVERY = 16, 5


class StrictStrategy(XLASPMDStrategy):
    """Only the strategy itself runs programs, except on logging steps; counts them before each micro-batch."""

    strict = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.compiled: list[int] = []
        self.fetched: list[int] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.strict = True
        super().on_train_batch_start(batch, batch_idx)  # runs what the last step left behind
        self.compiled.append(metric("CompileTime"))
        self.fetched.append(metric("TransferFromDeviceTime"))

    def _run(self) -> None:
        torch_xla._XLAC._set_allow_execution(True)
        super()._run()
        torch_xla._XLAC._set_allow_execution(not self.strict)

    def allow(self) -> None:
        self.strict = False
        torch_xla._XLAC._set_allow_execution(True)

    def teardown(self) -> None:
        self.allow()
        with suppress(RuntimeError):  # the tensors of a step that was cut short are lost, and would hide its error
            super().teardown()


class Allow(Callback):
    """Lets logging steps read."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if is_logged(trainer, trainer.global_step):
            trainer.strategy.allow()

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.strategy.allow()


class Peek(Callback):
    """Reads the loss in step 3: what must not go unnoticed."""

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == 3:
            pl_module._loss_sum.item()


def forgetful(groups: Any) -> torch.optim.Optimizer:
    """AdamW whose bias corrections are exactly 1 from step 9 on, as those of usual betas are after some hundred steps."""
    return torch.optim.AdamW(groups, lr=3e-3, betas=(0.01, 0.01))


def metric(name: str) -> int:
    found = metrics.metric_data(name)
    return int(found[0]) if found else 0


def run(optimizer: Any, mesh: str, *extra: Callback, accumulate: int = 1) -> dict[str, list[int]]:
    masking = ProgressiveMasking(Linear(0.0, 0.5), PerEpoch([0.0, 0.5]), Linear(0.0, 1.0), [2, 4, 8])
    monitors = [DiffusionMonitor(), GradientNorm(), Throughput(), LearningRateMonitor("step"), Preemption()]
    chosen = strategy(mesh, StrictStrategy)
    assert isinstance(chosen, StrictStrategy)
    settings: dict[str, Any] = {"max_steps": STEPS, "log_every_n_steps": EVERY, "accumulate_grad_batches": accumulate}
    logger = TensorBoardLogger(folder(), name=None)
    seed_everything(0, verbose=False)
    runner = trainer(chosen, Allow(), *monitors, *extra, logger=logger, **settings)
    runner.fit(module(optimizer, masking), data())
    return {"compiled": chosen.compiled[::accumulate], "fetched": chosen.fetched[::accumulate]}


if __name__ == "__main__":
    results: dict[str, Any] = {
        "adamw": run(forgetful, "1,4,1"),
        "adafactor": run(adafactor, "1,2,2"),
        "accumulation": run(adamw, "2,2,1", accumulate=2),
    }
    try:
        run(adamw, "1,4,1", Peek())
        results["peek"] = "nothing was noticed"
    except RuntimeError as error:
        results["peek"] = str(error)
    print("RESULT" + json.dumps(results))
