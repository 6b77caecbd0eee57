"""S3: whole spans are masked together (their rate is checked in test_base.py). Bounds are 5 sigma of a binomial.

With a span length of k, a row's runs of masked or of clean tokens have lengths that are multiples of k, but for the
first and the last run, which the row's edges cut. The greatest common divisor of the inner runs hence tells k.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from coda.masking import BlockMasking, MaskedBatch, PerEpoch

MASK = 101


def apply(strategy: BlockMasking, rows: int, length: int, t: float = 0.5, progress: float = 0.0) -> MaskedBatch:
    input_ids = torch.ones(rows, length, dtype=torch.long)
    maskable = torch.ones_like(input_ids, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    return strategy(input_ids, maskable, torch.full((rows,), t), progress, mask_token_id=MASK, generator=generator)


def inner_runs(row: Tensor) -> Tensor:
    """Lengths of the runs of equal values in a bool [L], without the first and the last run."""
    return row.unique_consecutive(return_counts=True)[1][1:-1]


def span_of(row: Tensor) -> int:
    """The span length of a long row's mask, 1 for independent masking."""
    return int(np.gcd.reduce(inner_runs(row).numpy()))


def assert_count(count: int, rows: int, share: float) -> None:
    assert abs(count - rows * share) <= 5 * (rows * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_inner_runs_are_whole_spans(size: int) -> None:
    runs = torch.cat([inner_runs(row) for row in apply(BlockMasking([size]), 300, 100).masked])
    assert len(runs) > 1_000
    assert (runs % size == 0).all()
    assert runs.min() == size


@pytest.mark.parametrize("size", [2, 3, 8])
def test_spans_start_anywhere(size: int) -> None:
    """The grid's offset is uniform: the first change of a row falls on each residue modulo k equally often."""
    rows = 4_000
    masked = apply(BlockMasking([size]), rows, 16 * size).masked
    first_change = masked.diff(dim=1).int().argmax(dim=1) + 1
    for count in (first_change % size).bincount(minlength=size):
        assert_count(int(count), rows, 1 / size)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("t", [0.2, 0.6])
def test_neighbours_are_masked_together_as_often_as_spans_join_them(size: int, t: float) -> None:
    """Two neighbours share a span with chance (k - 1) / k, else they are independent, at the row's edges too."""
    rows = 20_000
    masked = apply(BlockMasking([size]), rows, 12, t).masked
    expected = t * ((size - 1) + t) / size
    for count in (masked[:, 1:] & masked[:, :-1]).sum(dim=0):
        assert_count(int(count), rows, expected)


def test_every_row_draws_its_own_span_length_uniformly() -> None:
    rows, sizes = 900, [2, 4, 8]
    spans = [span_of(row) for row in apply(BlockMasking(sizes), rows, 400).masked]
    assert set(spans) == set(sizes)
    for size in sizes:
        assert_count(spans.count(size), rows, 1 / len(sizes))


def test_the_order_of_the_sizes_is_free() -> None:
    spans = {span_of(row) for row in apply(BlockMasking([8, 3, 5]), 200, 400).masked}
    assert spans == {3, 5, 8}


def test_rows_that_were_not_drawn_are_masked_independently() -> None:
    """`applied` tells which rows were masked in blocks, and the span length is independent of being drawn."""
    rows, sizes, share = 1_500, [2, 4, 8], 0.4
    batch = apply(BlockMasking(sizes, share), rows, 400)
    spans = torch.tensor([span_of(row) for row in batch.masked])
    drawn = batch.applied["S3"]
    assert_count(int(drawn.sum()), rows, share)
    assert torch.equal(spans > 1, drawn)
    for size in sizes:
        assert_count(int((spans == size).sum()), rows, share / len(sizes))


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.05), (0.5, 0.4), (1.0, 0.4)])
def test_the_share_of_rows_follows_the_schedule(progress: float, share: float) -> None:
    """Not a switch for the whole batch, as in the released code."""
    applied = apply(BlockMasking([2], PerEpoch([0.05, 0.4])), 20_000, 2, progress=progress).applied["S3"]
    assert_count(int(applied.sum()), 20_000, share)


def test_nothing_but_the_mask_changes() -> None:
    batch = apply(BlockMasking([4]), 100, 30)
    assert (batch.target_ids == 1).all() and batch.maskable.all() and batch.attention_mask is None


@pytest.mark.parametrize("sizes", [[], [0], [2, 0], [4, -1]])
def test_unusable_sizes_are_refused_by_name_and_value(sizes: list[int]) -> None:
    with pytest.raises(ValueError) as error:
        BlockMasking(sizes)
    assert f"BlockMasking.sizes is {sizes}" in str(error.value)


@pytest.mark.parametrize("bad", [-0.1, 1.2])
def test_a_share_outside_0_to_1_is_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"BlockMasking\.probability is {bad}"):
        BlockMasking([2], bad)
