"""Learning-rate schedules as multiples of the peak."""

import math

import pytest
import torch

from coda.optimization import ConstantRate, CosineDecay, LearningRateSchedule, LinearDecay
from tests.conftest import Tiny

SCHEDULES = [ConstantRate, LinearDecay, CosineDecay]
TOTAL = 100


def rates(schedule: LearningRateSchedule, total: int = TOTAL) -> list[float]:
    """The multiple of every update, and the one that would follow the last."""
    return [schedule(step, total) for step in range(total + 1)]


@pytest.mark.parametrize("build", SCHEDULES)
@pytest.mark.parametrize("warmup", [10, 0.1], ids=["steps", "share"])
def test_warm_up_is_a_straight_line_to_the_peak(build: type[LearningRateSchedule], warmup: float) -> None:
    """The first update already counts, and the peak is reached right behind the warm-up."""
    assert rates(build(warmup))[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])


@pytest.mark.parametrize("build", SCHEDULES)
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.99])
def test_a_share_is_as_many_steps(build: type[LearningRateSchedule], share: float) -> None:
    assert rates(build(share)) == pytest.approx(rates(build(share * TOTAL)))


@pytest.mark.parametrize("build", SCHEDULES)
def test_a_share_follows_the_length_of_training(build: type[LearningRateSchedule]) -> None:
    short, long = rates(build(0.1), 10), rates(build(0.1), 1000)
    assert short[1] == long[100] == 1.0


@pytest.mark.parametrize("build", SCHEDULES)
def test_without_warm_up_it_starts_at_the_peak(build: type[LearningRateSchedule]) -> None:
    assert build()(0, TOTAL) == 1.0


@pytest.mark.parametrize("build", [LinearDecay, CosineDecay])
@pytest.mark.parametrize("warmup", [0, 1, 7, 0.1, 0.33, 99])
@pytest.mark.parametrize("total", [100, 333, 50_000])
def test_decay_ends_at_exactly_zero(build: type[LearningRateSchedule], warmup: float, total: int) -> None:
    schedule = build(warmup)
    assert schedule(total, total) == 0.0
    assert schedule(total - 1, total) > 0.0


@pytest.mark.parametrize("build", SCHEDULES)
@pytest.mark.parametrize("beyond", [1, 1000])
def test_steps_beyond_the_end_stay_there(build: type[LearningRateSchedule], beyond: int) -> None:
    """Lightning steps the scheduler once more than the optimizer."""
    assert build(10)(TOTAL + beyond, TOTAL) == build(10)(TOTAL, TOTAL)


def test_linear_decay_is_a_straight_line() -> None:
    assert rates(LinearDecay(20))[20:] == pytest.approx([1 - i / 80 for i in range(81)])


def test_cosine_decay_is_half_a_cosine() -> None:
    expected = [0.5 * (1 + math.cos(math.pi * i / 80)) for i in range(81)]
    assert rates(CosineDecay(20))[20:] == pytest.approx(expected)


def test_the_constant_rate_stays_at_the_peak() -> None:
    assert set(rates(ConstantRate(20))[20:]) == {1.0}


@pytest.mark.parametrize("build", SCHEDULES)
@pytest.mark.parametrize("warmup", [100, 500])
def test_a_warm_up_as_long_as_training_only_rises(build: type[LearningRateSchedule], warmup: int) -> None:
    values = rates(build(warmup))[:TOTAL]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(TOTAL / (warmup + 1))


@pytest.mark.parametrize("build", SCHEDULES)
@pytest.mark.parametrize("warmup", [-1, -0.1])
def test_a_negative_warm_up_is_refused_by_name(build: type[LearningRateSchedule], warmup: float) -> None:
    with pytest.raises(ValueError, match=rf"{build.__name__}\.warmup is {warmup}; give a number of steps, or a share"):
        build(warmup)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_fit_follows_it_by_optimizer_steps(tiny: Tiny, accumulate: int) -> None:
    """Not by micro-batches, whatever the epochs."""
    used: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            super().step(closure)  # type: ignore[arg-type]
            used.append(self.param_groups[0]["lr"])

    trainer = tiny.trainer(max_steps=14, accumulate_grad_batches=accumulate, limit_val_batches=0)
    module = tiny.module(optimizer=lambda parameters: Watched(parameters, lr=0.5), lr_schedule=LinearDecay(0.25))
    trainer.fit(module, tiny.data())
    assert used == pytest.approx([0.5 * LinearDecay(0.25)(step, 14) for step in range(14)])
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0
