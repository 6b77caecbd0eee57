"""Schedules: pure functions of progress that give one value for floats and tensors alike."""

from collections.abc import Callable

import pytest
import torch

from coda.masking import Constant, Linear, PerEpoch, ProgressiveMasking, Schedule

# arXiv 2510.03270, table 3: S1, S2 and S3 in percent of the rows, for epochs 1 to 5.
TABLE_3 = [(1, 1, 5), (5, 5, 10), (10, 10, 15), (15, 15, 20), (20, 20, 25)]
SCHEDULES = {
    "constant": Constant(0.3),
    "rising": Linear(0.1, 0.9),
    "falling": Linear(0.9, 0.0),
    "table": PerEpoch([0.05, 0.9, 0.2, 0.0, 1.0]),
    "one epoch": PerEpoch([0.4]),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def mid_training() -> ProgressiveMasking:
    s1 = PerEpoch([0.01, 0.05, 0.10, 0.15, 0.20])
    return ProgressiveMasking(s1, s1, PerEpoch([0.05, 0.10, 0.15, 0.20, 0.25]), [2, 4, 8])


@pytest.mark.parametrize("epoch", range(5))
@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
def test_mid_training_table_at_the_epoch_boundaries(epoch: int, as_tensor: bool) -> None:
    """Each row holds from the first step of its epoch to the last, and the last row at the very end."""
    first, last = epoch / 5, (epoch + 1) / 5 - 1e-6 if epoch < 4 else 1.0
    for progress in (first, (first + last) / 2, last):
        value = torch.tensor([progress]) if as_tensor else progress
        percent = [100 * float(schedule(value)) for schedule in mid_training().schedules().values()]
        assert percent == pytest.approx(TABLE_3[epoch], abs=1e-4)


def test_every_epoch_lasts_equally_many_steps() -> None:
    """Step s of 50,000 has progress s / 50,000; no rounding may shift a boundary by a step."""
    steps, schedule = 50_000, PerEpoch([0.1, 0.2, 0.3, 0.4, 0.5])
    values = [round(schedule(step / steps), 6) for step in range(steps)]
    assert [values.count(v) for v in (0.1, 0.2, 0.3, 0.4, 0.5)] == [steps // 5] * 5
    assert values == sorted(values)


def test_schedules_are_named_by_their_transformation() -> None:
    assert list(mid_training().schedules()) == ["S1", "S2", "S3"]


@pytest.mark.parametrize(("progress", "value"), [(0.0, 0.1), (0.25, 0.3), (1.0, 0.9)])
def test_linear_is_a_straight_line_between_its_ends(progress: float, value: float) -> None:
    assert Linear(0.1, 0.9)(progress) == pytest.approx(value)
    assert Linear(0.9, 0.1)(progress) == pytest.approx(1.0 - value)


@every_schedule
@pytest.mark.parametrize("progress", [0.0, 0.2, 0.5, 0.6, 0.999, 1.0])
def test_a_tensor_gives_the_value_of_the_float(schedule: Schedule, progress: float) -> None:
    tensor = torch.tensor([progress])
    value = schedule(tensor)
    assert isinstance(schedule(progress), float)
    assert value.shape == (1,) and value.dtype == torch.float32
    assert value.item() == pytest.approx(schedule(progress), abs=1e-6)
    assert tensor.item() == pytest.approx(progress), "progress was modified"


@every_schedule
def test_values_are_probabilities_throughout(schedule: Schedule) -> None:
    values = schedule(torch.linspace(0, 1, 1001))
    assert values.min() >= -1e-6 and values.max() <= 1 + 1e-6


@pytest.mark.parametrize("bad", [-0.1, 1.2, float("nan")])
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("Constant.value", Constant),
        ("Linear.start", lambda value: Linear(value, 0.5)),
        ("Linear.end", lambda value: Linear(0.5, value)),
        ("PerEpoch.values[1]", lambda value: PerEpoch([0.1, value])),
    ],
)
def test_a_value_that_is_no_probability_is_refused_by_name(
    name: str, build: Callable[[float], Schedule], bad: float
) -> None:
    with pytest.raises(ValueError) as error:
        build(bad)
    assert name in str(error.value) and str(bad) in str(error.value)


def test_a_table_without_epochs_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"PerEpoch\.values is empty"):
        PerEpoch([])
