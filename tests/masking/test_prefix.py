"""S1: a random prefix of some rows is protected from masking. Bounds are 5 sigma of a binomial over the rows."""

import pytest
import torch

from coda.masking import Linear, MaskedBatch, UnmaskablePrefix

MASK = 101


def apply(strategy: UnmaskablePrefix, rows: int, length: int, progress: float = 0.0) -> MaskedBatch:
    """Mask everything that may be masked."""
    input_ids = torch.arange(length).repeat(rows, 1)
    maskable = torch.ones_like(input_ids, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    return strategy(input_ids, maskable, torch.ones(rows), progress, mask_token_id=MASK, generator=generator)


def assert_count(count: int, rows: int, share: float) -> None:
    assert abs(count - rows * share) <= 5 * (rows * share * (1 - share)) ** 0.5


def test_prefix_length_is_uniform_from_one_to_all_but_one() -> None:
    rows, length = 30_000, 7
    prefix = (~apply(UnmaskablePrefix(), rows, length).maskable).sum(dim=1)
    counts = prefix.bincount(minlength=length + 1).tolist()
    assert counts[0] == counts[length] == 0
    for count in counts[1:length]:
        assert_count(count, rows, 1 / (length - 1))


def test_the_protected_tokens_are_a_prefix() -> None:
    maskable = apply(UnmaskablePrefix(), 500, 20).maskable
    assert (maskable.int().diff(dim=1) >= 0).all()


def test_rows_that_were_not_drawn_are_untouched() -> None:
    batch = apply(UnmaskablePrefix(0.3), 5_000, 6)
    untouched = batch.maskable.all(dim=1)
    assert torch.equal(untouched, ~batch.applied["S1"])
    assert_count(int(batch.applied["S1"].sum()), 5_000, 0.3)


def test_prefix_tokens_stay_visible_and_unchanged() -> None:
    batch = apply(UnmaskablePrefix(), 500, 20)
    assert torch.equal(batch.target_ids, torch.arange(20).repeat(500, 1))
    assert torch.equal(batch.noisy_input_ids[~batch.maskable], batch.target_ids[~batch.maskable])
    assert batch.attention_mask is None


def test_tokens_that_were_unmaskable_before_stay_so() -> None:
    maskable = torch.zeros(200, 10, dtype=torch.bool)
    maskable[:, ::2] = True
    input_ids = torch.ones(200, 10, dtype=torch.long)
    batch = UnmaskablePrefix()(input_ids, maskable, torch.ones(200), 0.0, mask_token_id=MASK)
    assert not (batch.maskable & ~maskable).any()
    assert batch.maskable.any()


@pytest.mark.parametrize(("length", "masked"), [(1, [False]), (2, [False, True])])
def test_the_shortest_rows(length: int, masked: list[bool]) -> None:
    """Two tokens leave one choice, a prefix of one; a single token is protected."""
    assert apply(UnmaskablePrefix(), 100, length).masked.tolist() == [masked] * 100


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.1), (0.5, 0.3), (1.0, 0.5)])
def test_the_share_of_rows_follows_the_schedule(progress: float, share: float) -> None:
    applied = apply(UnmaskablePrefix(Linear(0.1, 0.5)), 20_000, 2, progress).applied["S1"]
    assert_count(int(applied.sum()), 20_000, share)


@pytest.mark.parametrize("bad", [-0.1, 1.2])
def test_a_share_outside_0_to_1_is_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"UnmaskablePrefix\.probability is {bad}"):
        UnmaskablePrefix(bad)
