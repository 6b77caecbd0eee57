"""The gradient norm is that of the whole step, before clipping."""

from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule

from callbacks import GradientNorm
from tests.callbacks.events import scalars
from tests.conftest import Tiny


class ByHand(Callback):
    """The same norm from all parameters, before and after clipping."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, optimizer: Any) -> None:
        self.before.append(norm(pl_module))

    def on_before_zero_grad(self, trainer: Any, pl_module: LightningModule, optimizer: Any) -> None:
        if any(parameter.grad is not None for parameter in pl_module.parameters()):
            self.after.append(norm(pl_module))


def norm(module: LightningModule) -> float:
    squares = [
        parameter.grad.double().square().sum() for parameter in module.parameters() if parameter.grad is not None
    ]
    return float(torch.stack(squares).sum().sqrt())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_the_norm_over_all_parameters_before_clipping(tiny: Tiny, accumulate: int) -> None:
    by_hand = ByHand()
    options = {"gradient_clip_val": 1e-3, "accumulate_grad_batches": accumulate, "limit_val_batches": 0}
    trainer = tiny.fit(GradientNorm(), by_hand, max_steps=4, **options)
    logged = scalars(trainer)["train/gradient_norm"]
    assert logged == pytest.approx(dict(enumerate(by_hand.before)), rel=1e-5)
    assert min(by_hand.before) > 1e-2
    assert max(by_hand.after) < 1.01e-3


def test_it_is_computed_on_logging_steps_only(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(gradients: list[torch.Tensor]) -> torch.Tensor:
        calls.append(len(gradients))
        return torch.zeros(())

    monkeypatch.setattr("callbacks.gradient_norm.get_total_norm", counted)
    trainer = tiny.fit(GradientNorm(), max_steps=7, log_every_n_steps=3, limit_val_batches=0)
    assert set(scalars(trainer)["train/gradient_norm"]) == {2, 5}
    assert len(calls) == 2


def test_a_run_that_logs_nothing_trains(tiny: Tiny) -> None:
    assert tiny.fit(GradientNorm(), max_steps=1, log_every_n_steps=0).global_step == 1
