"""The order of rows: a pure function of (seed, epoch, rank), the same for any number of ranks, resumable anywhere."""

import random

import numpy as np
import pytest
import torch

from coda.data.packing import RowOrder

ROWS, GLOBAL = 103, 8  # 12 global batches of 8, and 7 rows left over
LAYOUTS = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1), (4, 2)]


def order(ranks: int = 1, accumulate: int = 1, rank: int = 0, seed: int | None = 0, **options: int) -> RowOrder:
    return RowOrder(ROWS, GLOBAL // ranks // accumulate, rank, ranks, seed, accumulate=accumulate, **options)


def global_batches(ranks: int, accumulate: int, **options: int) -> list[list[int]]:
    """The rows of each optimizer step, over all ranks and micro-batches."""
    micro = GLOBAL // ranks // accumulate
    read = np.stack([np.array(list(order(ranks, accumulate, rank, **options))) for rank in range(ranks)])
    steps = read.reshape(ranks, -1, accumulate, micro).transpose(1, 0, 2, 3).reshape(-1, GLOBAL)
    return [sorted(step) for step in steps.tolist()]


def test_every_row_is_read_at_most_once_per_epoch() -> None:
    rows = list(order())
    assert len(rows) == len(set(rows)) == 96
    assert set(rows) < set(range(ROWS))


def test_all_rows_are_read_if_they_fill_whole_batches() -> None:
    assert sorted(RowOrder(96, 8, 0, 1, 0)) == list(range(96))


def test_the_rows_left_over_differ_from_epoch_to_epoch() -> None:
    left = [set(range(ROWS)) - set(order(epoch=epoch)) for epoch in range(4)]
    assert len(set.union(*left)) > 7


def test_without_a_seed_rows_come_in_order() -> None:
    assert list(order(seed=None)) == list(range(96))
    assert list(order(seed=None, epoch=3)) == list(range(96))


def test_a_row_falls_anywhere() -> None:
    """Mean place over many epochs: within 5 sigma of the middle."""
    places = [list(RowOrder(50, 1, 0, 1, 0, epoch)).index(7) for epoch in range(400)]
    assert abs(np.mean(places) - 24.5) < 5 * (50 / 12**0.5) / 400**0.5


@pytest.mark.parametrize("changed", [{"epoch": 1}, {"seed": 1}], ids=["epoch", "seed"])
def test_every_epoch_and_seed_has_its_own_order(changed: dict[str, int]) -> None:
    assert list(order(**changed)) != list(order())


def test_epochs_of_one_seed_are_not_those_of_the_next() -> None:
    assert list(order(seed=0, epoch=1)) != list(order(seed=1, epoch=0))


def test_the_order_is_a_pure_function() -> None:
    one = order(epoch=2)
    first = list(one)
    for module in (random, np.random):
        module.seed(5)
    torch.manual_seed(5)
    assert list(one) == list(one) == list(order(epoch=2)) == first


@pytest.mark.parametrize(("ranks", "accumulate"), LAYOUTS)
@pytest.mark.parametrize("epoch", [0, 3])
def test_global_batches_do_not_depend_on_ranks_or_accumulation(ranks: int, accumulate: int, epoch: int) -> None:
    assert global_batches(ranks, accumulate, epoch=epoch) == global_batches(1, 1, epoch=epoch)


@pytest.mark.parametrize(("ranks", "accumulate"), LAYOUTS)
def test_ranks_never_share_a_row(ranks: int, accumulate: int) -> None:
    read = [row for rank in range(ranks) for row in order(ranks, accumulate, rank)]
    assert len(read) == len(set(read)) == 96


@pytest.mark.parametrize(("ranks", "accumulate"), LAYOUTS)
def test_its_length_is_that_of_a_whole_epoch_of_one_rank(ranks: int, accumulate: int) -> None:
    for rank in range(ranks):
        assert len(order(ranks, accumulate, rank)) == len(list(order(ranks, accumulate, rank))) == 96 // ranks


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (1, 2), (2, 1), (4, 2)])
@pytest.mark.parametrize("micro_batches", [0, 1, 5, 11, 12])
def test_it_resumes_at_any_micro_batch(ranks: int, accumulate: int, micro_batches: int) -> None:
    micro = GLOBAL // ranks // accumulate
    for rank in range(ranks):
        whole = list(order(ranks, accumulate, rank, epoch=1))
        tail = list(order(ranks, accumulate, rank, epoch=1, start=micro_batches * micro * ranks))
        assert tail == whole[micro_batches * micro :]


@pytest.mark.parametrize(("ranks", "accumulate"), LAYOUTS)
@pytest.mark.parametrize("steps", [1, 7])
def test_it_resumes_at_a_step_on_any_number_of_ranks(ranks: int, accumulate: int, steps: int) -> None:
    assert global_batches(ranks, accumulate, start=steps * GLOBAL) == global_batches(1, 1)[steps:]


def test_resuming_is_for_one_epoch_only() -> None:
    resumed = order(epoch=1, start=40)
    assert list(resumed) == list(order(epoch=1))[40:]
    resumed.set_epoch(2)
    assert list(resumed) == list(order(epoch=2))


def test_setting_the_epoch_it_is_in_keeps_the_place() -> None:
    """Lightning sets it before every epoch, the resumed one included."""
    resumed = order(epoch=1, start=40)
    resumed.set_epoch(1)
    assert list(resumed) == list(order(epoch=1))[40:]


def test_the_length_does_not_shrink_on_resuming() -> None:
    """Lightning counts the batches that were read before on its own."""
    assert len(order(start=40)) == 96


@pytest.mark.parametrize("rows", [0, 7])
def test_too_few_rows_are_no_batch(rows: int) -> None:
    few = RowOrder(rows, 8, 0, 1, 0)
    assert (len(few), list(few)) == (0, [])
