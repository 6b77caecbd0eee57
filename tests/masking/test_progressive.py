"""The composition of S1, S2 and S3: literal shares, disjoint or independent. Bounds are 5 sigma of a binomial."""

import numpy as np
import pytest
import torch
from torch import Tensor

from coda.masking import Constant, Linear, MaskedBatch, PerEpoch, ProgressiveMasking, Schedule

MASK, PAD = 101, 100
SHARES = [
    (0.01, 0.01, 0.01),
    (0.01, 0.01, 0.05),
    (0.2, 0.2, 0.25),
    (0.5, 0.5, 0.5),
    (0.0, 0.7, 1.0),
    (0.6, 0.0, 0.3),
    (0.0, 0.0, 0.0),
    (1.0, 0.0, 0.5),
    (0.0, 1.0, 0.5),
]


def apply(
    strategy: ProgressiveMasking, rows: int, length: int, t: float = 1.0, progress: float | Tensor = 0.0
) -> MaskedBatch:
    """Mask rows of the clean tokens 0..length-1 (below PAD for the padding to be told from text)."""
    input_ids = torch.arange(length).clamp(max=PAD - 1).repeat(rows, 1)
    maskable = torch.ones_like(input_ids, dtype=torch.bool)
    times, generator = torch.full((rows,), t), torch.Generator().manual_seed(0)
    return strategy(input_ids, maskable, times, progress, mask_token_id=MASK, pad_token_id=PAD, generator=generator)


def assert_share(rows: Tensor, share: float) -> None:
    bound = 5 * (len(rows) * share * (1 - share)) ** 0.5
    assert abs(rows.sum().item() - len(rows) * share) <= bound


@pytest.mark.parametrize("shares", SHARES)
def test_proportions_are_literal(shares: tuple[float, float, float]) -> None:
    """S2 gets p, not the p(1 - p) of the released code."""
    applied = apply(ProgressiveMasking(*shares, [2]), 50_000, 3).applied
    for name, share in zip(("S1", "S2", "S3"), shares, strict=True):
        assert_share(applied[name], share)


@pytest.mark.parametrize("shares", SHARES)
def test_prefix_and_truncation_never_meet_in_a_row(shares: tuple[float, float, float]) -> None:
    applied = apply(ProgressiveMasking(*shares, [2]), 50_000, 3).applied
    assert not (applied["S1"] & applied["S2"]).any()


@pytest.mark.parametrize("shares", SHARES)
def test_block_masking_is_independent_of_the_other_two(shares: tuple[float, float, float]) -> None:
    prefix, truncation, block = shares
    applied = apply(ProgressiveMasking(*shares, [2]), 50_000, 3).applied
    assert_share(applied["S1"] & applied["S3"], prefix * block)
    assert_share(applied["S2"] & applied["S3"], truncation * block)


def test_flags_tell_what_was_done_to_prefix_and_suffix() -> None:
    batch = apply(ProgressiveMasking(0.3, 0.3, 0.5, [2]), 3_000, 12)
    padding = batch.target_ids == PAD
    assert torch.equal(batch.applied["S1"], ~batch.maskable[:, 0])
    assert torch.equal(batch.applied["S2"], padding[:, -1])
    assert torch.equal(batch.applied["S1"] | batch.applied["S2"], ~batch.maskable.all(dim=1))
    assert torch.equal(padding.any(dim=1), batch.applied["S2"])
    assert not (padding & batch.maskable).any()


def span_of(row: Tensor) -> int:
    """Greatest common divisor of the lengths of the inner runs of a bool [n]; 0 if there is none. See test_block.py."""
    return int(np.gcd.reduce(row.unique_consecutive(return_counts=True)[1][1:-1].numpy(), initial=0))


def test_flags_tell_which_rows_were_masked_in_blocks() -> None:
    batch = apply(ProgressiveMasking(0.3, 0.3, 0.5, [4]), 1_000, 300, t=0.5)
    checked = 0
    for masked, maskable, block in zip(batch.masked, batch.maskable, batch.applied["S3"], strict=True):
        if maskable.sum() >= 100:
            checked += 1
            span = span_of(masked[maskable])
            assert span % 4 == 0 if block else span == 1
    assert checked > 600


@pytest.mark.parametrize("name", ["S1", "S2"])
def test_lengths_are_uniform_in_the_drawn_rows(name: str) -> None:
    """Fails if one random number both chooses the row and its split point."""
    length = 6
    batch = apply(ProgressiveMasking(0.2, 0.2, 0.5, [2]), 50_000, length)
    left = batch.maskable[batch.applied[name]].sum(dim=1)
    assert left.min() == 1 and left.max() == length - 1
    for tokens in range(1, length):
        assert_share(left == tokens, 1 / (length - 1))


@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize(
    ("progress", "shares"),
    [(0.0, (0.01, 0.3, 0.5)), (0.5, (0.2, 0.2, 0.25)), (1.0, (0.2, 0.1, 0.0))],
)
def test_shares_follow_the_schedules(progress: float, shares: tuple[float, float, float], as_tensor: bool) -> None:
    strategy = ProgressiveMasking(PerEpoch([0.01, 0.2]), Linear(0.3, 0.1), Linear(0.5, 0.0), [2])
    applied = apply(strategy, 40_000, 2, progress=torch.tensor([progress]) if as_tensor else progress).applied
    for name, share in zip(("S1", "S2", "S3"), shares, strict=True):
        assert_share(applied[name], share)


@pytest.mark.parametrize("hide", [False, True])
def test_padding_is_hidden_from_attention_only_on_request(hide: bool) -> None:
    batch = apply(ProgressiveMasking(0.3, 0.3, 0.5, [2], hide_padding=hide), 500, 12)
    if hide:
        assert batch.attention_mask is not None and torch.equal(batch.attention_mask, batch.target_ids != PAD)
    else:
        assert batch.attention_mask is None


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("bad", [-0.1, 1.2])
def test_a_share_outside_0_to_1_is_refused_by_name(position: int, bad: float) -> None:
    shares = [0.0, 0.0, 0.0]
    shares[position] = bad
    name = ("prefix", "truncation", "block")[position]
    with pytest.raises(ValueError, match=rf"ProgressiveMasking\.{name} is {bad}"):
        ProgressiveMasking(*shares, [2])


@pytest.mark.parametrize(
    ("prefix", "truncation", "total"),
    [
        (0.6, 0.5, "110.0%"),
        (Constant(0.6), Constant(0.41), "101.0%"),
        (PerEpoch([0.1, 0.1, 0.1, 0.9]), PerEpoch([0.1, 0.1, 0.1, 0.2]), "110.0%"),
        (PerEpoch([0.9, 0.1, 0.1, 0.1]), 0.3, "120.0%"),
        (Linear(0.0, 0.6), Linear(0.0, 0.401), "100.1%"),
    ],
    ids=["numbers", "constants", "last epoch", "first epoch", "last steps"],
)
def test_prefix_and_truncation_of_more_than_all_rows_are_refused(
    prefix: float | Schedule, truncation: float | Schedule, total: str
) -> None:
    """At construction, not days later when the schedule gets there."""
    with pytest.raises(ValueError, match="prefix and truncation") as error:
        ProgressiveMasking(prefix, truncation, 0.0, [2])
    assert total in str(error.value)


@pytest.mark.parametrize(("prefix", "truncation"), [(0.5, 0.5), (Linear(0.9, 0.1), Linear(0.1, 0.9))])
def test_shares_of_exactly_all_rows_are_fine(prefix: float | Schedule, truncation: float | Schedule) -> None:
    applied = apply(ProgressiveMasking(prefix, truncation, 0.0, [2]), 2_000, 4, progress=0.5).applied
    assert (applied["S1"] ^ applied["S2"]).all()


@pytest.mark.parametrize("sizes", [[], [0], [2, -4]])
def test_unusable_sizes_are_refused_by_name_and_value(sizes: list[int]) -> None:
    with pytest.raises(ValueError) as error:
        ProgressiveMasking(0.1, 0.1, 0.1, sizes)
    assert f"ProgressiveMasking.block_sizes is {sizes}" in str(error.value)


def test_truncating_without_a_padding_token_is_refused_by_name() -> None:
    input_ids = torch.ones(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="pad_token_id is None"):
        ProgressiveMasking(0.1, 0.1, 0.1, [2])(input_ids, input_ids > 0, torch.ones(2), 0.0, mask_token_id=MASK)
