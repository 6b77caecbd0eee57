"""The order of samples: one global sequence, dealt out to any ranks and micro-batches, resumed anywhere."""

import numpy as np
import pytest

from coda.data.packing import SampleOrder

SAMPLES, GLOBAL = 103, 8  # 12 global batches of 8, and 7 samples left over
LAYOUTS = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1)]
every_layout = pytest.mark.parametrize(("ranks", "accumulate"), LAYOUTS)


def order(ranks: int = 1, accumulate: int = 1, rank: int = 0, first: int = 0, samples: int = 96) -> SampleOrder:
    return SampleOrder(samples, GLOBAL // ranks // accumulate, rank, ranks, lambda: first)


def steps(ranks: int, accumulate: int, first: int = 0) -> list[list[int]]:
    """The samples of each optimizer step, over all ranks and micro-batches."""
    micro = GLOBAL // ranks // accumulate
    read = np.stack([np.array(list(order(ranks, accumulate, rank, first))) for rank in range(ranks)])
    return read.reshape(ranks, -1, accumulate, micro).transpose(1, 2, 0, 3).reshape(-1, GLOBAL).tolist()


@every_layout
@pytest.mark.parametrize("first", [0, 7 * GLOBAL, 10**12])
def test_every_step_is_the_next_stretch_of_the_sequence(ranks: int, accumulate: int, first: int) -> None:
    expected = [list(range(first + step * GLOBAL, first + (step + 1) * GLOBAL)) for step in range(12)]
    assert steps(ranks, accumulate, first) == expected


@every_layout
def test_ranks_never_share_a_sample(ranks: int, accumulate: int) -> None:
    read = [sample for rank in range(ranks) for sample in order(ranks, accumulate, rank)]
    assert sorted(read) == list(range(96))


@every_layout
def test_its_length_is_what_one_rank_reads(ranks: int, accumulate: int) -> None:
    for rank in range(ranks):
        assert len(order(ranks, accumulate, rank)) == len(list(order(ranks, accumulate, rank))) == 96 // ranks


@pytest.mark.parametrize(
    ("micro_batch", "ranks", "read"), [(8, 1, 96), (8, 2, 96), (3, 1, 102), (5, 4, 100), (103, 1, 103)]
)
def test_an_incomplete_last_micro_batch_is_left_out(micro_batch: int, ranks: int, read: int) -> None:
    """As in validation, whose number of rows is what it is."""
    found = [sample for rank in range(ranks) for sample in SampleOrder(SAMPLES, micro_batch, rank, ranks)]
    assert sorted(found) == list(range(read))


@pytest.mark.parametrize("samples", [0, 7])
def test_too_few_samples_are_no_batch(samples: int) -> None:
    few = SampleOrder(samples, 8, 0, 1)
    assert (len(few), list(few)) == (0, [])


def test_where_it_begins_is_asked_anew_for_every_pass() -> None:
    begun = iter([0, 96, 40])
    one = SampleOrder(96, 8, 0, 1, lambda: next(begun))
    assert [next(iter(one)) for _ in range(3)] == [0, 96, 40]


def test_it_is_asked_when_the_pass_begins_not_when_it_is_made() -> None:
    """The Trainer makes the loader before it has read the checkpoint."""
    done = 0
    one = SampleOrder(96, 8, 0, 1, lambda: done)
    done = 24
    assert next(iter(one)) == 24
