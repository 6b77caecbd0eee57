"""What the monitor logs in a real fit. Statistical bounds are 5 sigma."""

from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor

from callbacks import DiffusionMonitor
from coda.masking import Linear, MaskedBatch, MaskingStrategy, PerEpoch, ProgressiveMasking, RandomMasking
from tests.callbacks.events import scalars
from tests.conftest import Tiny

STEPS, ROWS, LENGTH = 20, 16, 32
TABLE = [0.0, 0.1, 0.2, 0.3, 0.5]


def fit(tiny: Tiny, masking: MaskingStrategy, *others: Callback, **options: Any) -> Trainer:
    trainer = tiny.trainer(DiffusionMonitor(), *others, **{"max_steps": STEPS, "log_every_n_steps": 1, **options})
    trainer.fit(tiny.module(masking), tiny.data(LENGTH, ROWS, val_fraction=0.0))
    return trainer


@pytest.fixture(scope="module")
def progressive(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, float]]:
    """A fit with the shape of the report's table, logged at every step."""
    tiny = Tiny(corpus, tmp_path_factory.mktemp("progressive"))
    return scalars(fit(tiny, ProgressiveMasking(PerEpoch(TABLE), Linear(0.5, 0.1), 0.25, [2, 4])))


@pytest.mark.parametrize(
    ("name", "schedule"), [("S1", PerEpoch(TABLE)), ("S2", Linear(0.5, 0.1)), ("S3", lambda progress: 0.25)]
)
def test_schedules_are_logged_as_the_step_used_them(
    progressive: dict[str, dict[int, float]], name: str, schedule: Any
) -> None:
    expected = {step: schedule(step / STEPS) for step in range(STEPS)}
    assert progressive[f"schedule/{name}"] == pytest.approx(expected)


def test_the_share_of_rows_follows_the_schedule(progressive: dict[str, dict[int, float]]) -> None:
    for name in ("S1", "S2", "S3"):
        asked, got = progressive[f"schedule/{name}"], progressive[f"strategy/share_{name}"]
        variance = sum(share * (1 - share) / ROWS for share in asked.values())
        assert abs(sum(got.values()) - sum(asked.values())) <= 5 * variance**0.5


def test_a_strategy_that_is_off_has_a_share_but_no_loss(progressive: dict[str, dict[int, float]]) -> None:
    assert progressive["strategy/share_S1"][0] == 0.0
    assert min(progressive["strategy/loss_S1"]) >= STEPS // len(TABLE)


def test_all_noise_levels_are_seen_in_every_step(progressive: dict[str, dict[int, float]]) -> None:
    """Times are stratified over the batch."""
    for level in ("t0.2-0.4", "t0.4-0.6", "t0.6-0.8", "t0.8-1.0"):
        assert set(progressive[f"noise/loss_{level}"]) == set(range(STEPS))


def test_losses_start_at_that_of_a_uniform_guess(progressive: dict[str, dict[int, float]]) -> None:
    losses = [values[0] for name, values in progressive.items() if "/loss_" in name and 0 in values]
    assert len(losses) > 4
    assert losses == pytest.approx([5.77] * len(losses), abs=0.5)  # log of 320 rows of the embedding


def rates(trainer: Trainer) -> tuple[Tensor, Tensor]:
    values = scalars(trainer)
    return tuple(torch.tensor(list(values[f"mask_rate/{kind}"].values())) for kind in ("realised", "requested"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("masking", "span"),
    [(RandomMasking(), 1), (ProgressiveMasking(0.3, 0.3, 0.5, [4]), 4)],
    ids=["random", "progressive"],
)
def test_realised_and_requested_mask_rates_agree(tiny: Tiny, masking: MaskingStrategy, span: int) -> None:
    realised, requested = rates(fit(tiny, masking))
    sigma = (span / (6 * STEPS * ROWS * LENGTH / 2)) ** 0.5  # of t(1 - t), whose mean is 1/6
    assert abs(float((realised - requested).mean())) <= 5 * sigma
    assert requested.mean() == pytest.approx(0.5, abs=0.05)


class HalfMasking(RandomMasking):
    """Masks half as much as it is asked to."""

    def __call__(self, *args: Any, **kwargs: Any) -> MaskedBatch:
        input_ids, maskable, t, progress = args
        return super().__call__(input_ids, maskable, t / 2, progress, **kwargs)


def test_a_strategy_that_masks_too_little_is_seen(tiny: Tiny) -> None:
    realised, requested = rates(fit(tiny, HalfMasking()))
    assert realised.mean() / requested.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_logging_step_has_the_mean_since_the_last(tiny: Tiny, accumulate: int) -> None:
    """Every row has as many maskable tokens, so that steps weigh the same."""
    single, _ = rates(fit(tiny, RandomMasking(), accumulate_grad_batches=accumulate))
    window = fit(tiny, RandomMasking(), accumulate_grad_batches=accumulate, log_every_n_steps=5)
    assert torch.allclose(rates(window)[0], single.view(-1, 5).mean(dim=1))


def test_nothing_is_logged_between_logging_steps(tiny: Tiny) -> None:
    values = scalars(fit(tiny, ProgressiveMasking(0.5, 0.5, 0.5, [2]), log_every_n_steps=5))
    logged = {step for name, steps in values.items() if "/" in name for step in steps}
    assert logged == {4, 9, 14, 19}


def test_a_run_that_logs_nothing_trains(tiny: Tiny) -> None:
    trainer = fit(tiny, RandomMasking(), max_steps=2, log_every_n_steps=0)
    assert trainer.global_step == 2


def test_random_masking_has_no_schedule(tiny: Tiny) -> None:
    values = scalars(fit(tiny, RandomMasking(), max_steps=1))
    assert not [name for name in values if name.startswith("schedule/")]
    assert values["strategy/share_plain"] == {0: 1.0}
