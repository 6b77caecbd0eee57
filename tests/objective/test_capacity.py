"""Static shapes: whatever the capacity, the same loss and the same gradients as with one slot per masked token."""

from typing import Any

import pytest
import torch
from torch import Tensor

from coda.objective import DiffusionObjective, ObjectiveOutput, cross_entropy
from tests.objective.test_diffusion import DENOMINATORS, Denominator, gradients

BATCH, LENGTH, HIDDEN, VOCAB = 4, 12, 5, 17
# Of 12 positions, 11 of which predict a token, a row has room for 3, 6, 11 and all; of two rows, for 6, 12, 22 and all.
CAPACITIES = [0.25, 0.5, 0.95, 1.0]


def batch(counts: list[int], shift: bool = True) -> dict[str, Tensor]:
    """Rows with these numbers of masked tokens."""
    generator = torch.Generator().manual_seed(sum(counts))
    masked = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    for row, count in enumerate(counts):
        masked[row, torch.randperm(LENGTH - shift, generator=generator)[:count] + int(shift)] = True
    maskable = torch.ones_like(masked)
    maskable[:, 0] = not shift
    return {
        "hidden": torch.randn(BATCH, LENGTH, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_(),
        "head": torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_(),
        "target_ids": torch.randint(VOCAB, (BATCH, LENGTH), generator=generator),
        "masked": masked,
        "maskable": maskable,
        "t": 0.1 + 0.9 * torch.rand(BATCH, generator=generator, dtype=torch.float64),
    }


def assert_alike(ours: ObjectiveOutput, exact: ObjectiveOutput, inputs: dict[str, Tensor]) -> None:
    for name in ("loss_sum", "denominator", "nll", "correct", "masked", "maskable"):
        torch.testing.assert_close(getattr(ours, name), getattr(exact, name), rtol=1e-12, atol=1e-12, msg=name)
    expected = gradients(exact.loss_sum, inputs)
    torch.testing.assert_close(gradients(ours.loss_sum, inputs), expected, rtol=1e-12, atol=1e-12)


COUNTS = {
    "nothing": [0, 0, 0, 0],
    "everything": [11, 11, 11, 11],
    "exactly the capacity": [6, 6, 3, 0],
    "one above": [7, 6, 4, 0],
    "one row full": [0, 0, 11, 0],
    "mixed": [1, 9, 5, 11],
}


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_loss_and_gradients_are_those_of_the_exact_selection(counts: list[int], capacity: float, rows: int) -> None:
    inputs = batch(counts)
    ours = DiffusionObjective(capacity=capacity, capacity_rows=rows, chunk_size=4)(**inputs)
    assert_alike(ours, DiffusionObjective()(**inputs), inputs)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("capacity", [0.4, 1.0])
def test_so_they_are_for_every_denominator_and_without_a_shift(
    denominator: Denominator, shift: bool, capacity: float
) -> None:
    inputs = batch([2, 11, 5, 0], shift)
    settings: dict[str, Any] = {"denominator": denominator, "shift": shift}
    ours = DiffusionObjective(capacity=capacity, capacity_rows=2, **settings)(**inputs)
    assert_alike(ours, DiffusionObjective(**settings)(**inputs), inputs)


def test_overflow_counts_the_tokens_behind_the_capacity_of_their_group() -> None:
    inputs = batch([7, 11, 6, 0])
    assert DiffusionObjective(capacity=0.5)(**inputs).overflow.tolist() == [1, 5, 0, 0]
    assert DiffusionObjective(capacity=0.5, capacity_rows=2)(**inputs).overflow.tolist() == [0, 6, 0, 0]
    assert DiffusionObjective(capacity=0.25, capacity_rows=4)(**inputs).overflow.tolist() == [0, 6, 6, 0]
    assert DiffusionObjective(capacity=1.0)(**inputs).overflow.tolist() == [0, 0, 0, 0]
    assert DiffusionObjective()(**inputs).overflow.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("counts", "windows"), [([6, 6, 2, 0], 1), ([7, 0, 0, 0], 2), ([0, 0, 0, 11], 2), ([0, 0, 0, 0], 1)]
)
def test_a_window_that_no_group_needs_is_not_computed(
    counts: list[int], windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is, needed or not; each has room for 6 tokens of every row."""
    calls: list[torch.Size] = []
    score = cross_entropy._score

    def counted(*tensors: Tensor, **options: Any) -> None:
        calls.append(tensors[0].shape)
        score(*tensors, **options)

    monkeypatch.setattr(cross_entropy, "_score", counted)
    DiffusionObjective(capacity=0.5)(**batch(counts))
    assert calls == [(BATCH, 6)] * windows


def test_bad_capacities_are_refused_by_name() -> None:
    for bad in (0.0, -0.5, 1.5):
        with pytest.raises(ValueError, match=f"capacity is {bad}.*above 0 and up to 1"):
            DiffusionObjective(capacity=bad)
    with pytest.raises(ValueError, match="capacity_rows is 0"):
        DiffusionObjective(capacity_rows=0)
    with pytest.raises(ValueError, match="capacity_rows is 3, which does not divide the 4 rows"):
        DiffusionObjective(capacity=0.5, capacity_rows=3)(**batch([1, 1, 1, 1]))
