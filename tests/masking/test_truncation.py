"""S2: a random suffix of some rows becomes padding. Bounds are 5 sigma of a binomial over the rows."""

import pytest
import torch

from coda.masking import Linear, MaskedBatch, TruncatedSuffix

MASK, PAD = 101, 100


def apply(
    strategy: TruncatedSuffix, rows: int, length: int, progress: float = 0.0, pad_token_id: int | None = PAD
) -> MaskedBatch:
    """Mask everything that may be masked; clean tokens are 0..length-1, so padding is told from text."""
    input_ids = torch.arange(length).repeat(rows, 1)
    maskable = torch.ones_like(input_ids, dtype=torch.bool)
    t, generator = torch.ones(rows), torch.Generator().manual_seed(0)
    return strategy(
        input_ids, maskable, t, progress, mask_token_id=MASK, pad_token_id=pad_token_id, generator=generator
    )


def assert_count(count: int, rows: int, share: float) -> None:
    assert abs(count - rows * share) <= 5 * (rows * share * (1 - share)) ** 0.5


def test_the_text_that_is_left_is_uniform_from_one_to_all_but_one_tokens() -> None:
    rows, length = 30_000, 7
    text = (apply(TruncatedSuffix(), rows, length).target_ids != PAD).sum(dim=1)
    counts = text.bincount(minlength=length + 1).tolist()
    assert counts[0] == counts[length] == 0
    for count in counts[1:length]:
        assert_count(count, rows, 1 / (length - 1))


def test_padding_is_a_suffix_and_the_text_before_it_is_unchanged() -> None:
    target_ids = apply(TruncatedSuffix(), 500, 20).target_ids
    padding = target_ids == PAD
    assert (padding.int().diff(dim=1) >= 0).all()
    assert torch.equal(target_ids[~padding], torch.arange(20).repeat(500, 1)[~padding])


def test_padding_is_neither_maskable_nor_masked_nor_hidden_behind_a_mask_token() -> None:
    batch = apply(TruncatedSuffix(0.5), 500, 20)
    padding = batch.target_ids == PAD
    assert torch.equal(batch.maskable, ~padding)
    assert torch.equal(batch.masked, ~padding), "at t = 1 all the text is masked, and only the text"
    assert (batch.noisy_input_ids[padding] == PAD).all()


def test_rows_that_were_not_drawn_are_untouched() -> None:
    batch = apply(TruncatedSuffix(0.3), 5_000, 6)
    untouched = (batch.target_ids != PAD).all(dim=1)
    assert torch.equal(untouched, ~batch.applied["S2"])
    assert batch.maskable[untouched].all()
    assert_count(int(batch.applied["S2"].sum()), 5_000, 0.3)


def test_attention_sees_padding_by_default() -> None:
    assert apply(TruncatedSuffix(), 10, 20).attention_mask is None


def test_attention_sees_the_text_and_only_the_text_when_padding_is_hidden() -> None:
    batch = apply(TruncatedSuffix(0.5, hide_padding=True), 500, 20)
    assert batch.attention_mask is not None
    assert torch.equal(batch.attention_mask, batch.target_ids != PAD)


def test_tokens_that_were_unmaskable_before_stay_so() -> None:
    maskable = torch.zeros(200, 10, dtype=torch.bool)
    maskable[:, ::2] = True
    input_ids = torch.ones(200, 10, dtype=torch.long)
    batch = TruncatedSuffix()(input_ids, maskable, torch.ones(200), 0.0, mask_token_id=MASK, pad_token_id=PAD)
    assert torch.equal(batch.maskable, maskable & (batch.target_ids != PAD))


@pytest.mark.parametrize(("length", "target"), [(1, [0]), (2, [0, PAD])])
def test_the_shortest_rows(length: int, target: list[int]) -> None:
    """Two tokens leave one choice, a suffix of one; a single token has no suffix to lose."""
    assert apply(TruncatedSuffix(), 100, length).target_ids.tolist() == [target] * 100


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.1), (0.5, 0.3), (1.0, 0.5)])
def test_the_share_of_rows_follows_the_schedule(progress: float, share: float) -> None:
    applied = apply(TruncatedSuffix(Linear(0.1, 0.5)), 20_000, 2, progress).applied["S2"]
    assert_count(int(applied.sum()), 20_000, share)


def test_truncating_without_a_padding_token_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="pad_token_id is None"):
        apply(TruncatedSuffix(), 4, 4, pad_token_id=None)


@pytest.mark.parametrize("bad", [-0.1, 1.2])
def test_a_share_outside_0_to_1_is_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"TruncatedSuffix\.probability is {bad}"):
        TruncatedSuffix(bad)
