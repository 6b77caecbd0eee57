"""Training in bf16 mixed precision tracks float32: the same rows and masks, step by step, well inside of the noise."""

from statistics import fmean, stdev

import pytest
import torch
from lightning import Callback, seed_everything

from tests.conftest import Tiny

pytestmark = pytest.mark.slow
STEPS = 200


class Losses(Callback):
    """Loss per maskable token of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: object, pl_module: object, outputs: dict, *_: object) -> None:
        self.values.append(float(outputs["output"].loss_sum / outputs["output"].denominator))


def losses(tiny: Tiny, precision: str, seed: int = 0) -> list[float]:
    """Of 200 steps from the same weights; ``seed`` is that of the noise."""
    seed_everything(0)
    record = Losses()
    module = tiny.module(optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3), seed=seed)
    options = {"max_steps": STEPS, "gradient_clip_val": 1.0, "limit_val_batches": 0, "logger": False}
    tiny.trainer(record, precision=precision, **options).fit(module, tiny.data(global_batch_size=8))
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    return record.values


def test_bf16_mixed_tracks_float32_for_200_steps(tiny: Tiny) -> None:
    """The bounds: rounding changes a step's loss by 2% of what other masks change in it, the mean of the last 50 by 0.5%."""
    exact, rounded, other = losses(tiny, "32-true"), losses(tiny, "bf16-mixed"), losses(tiny, "32-true", seed=1)
    assert fmean(exact[-50:]) < 0.8 * fmean(exact[:10])
    assert rounded != exact
    noise = stdev(one - two for one, two in zip(exact, other, strict=True))
    error = stdev(one - two for one, two in zip(exact, rounded, strict=True))
    assert error < 0.02 * noise
    assert fmean(rounded[-50:]) == pytest.approx(fmean(exact[-50:]), rel=0.005)
