"""RandomMasking: tokens are masked independently of each other, and nothing else is touched."""

import torch

from coda.masking import MaskedBatch, RandomMasking

ROWS, LENGTH = 20_000, 8


def masked_batch(t: float) -> MaskedBatch:
    input_ids = torch.arange(LENGTH).repeat(ROWS, 1)
    maskable = torch.ones_like(input_ids, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    return RandomMasking()(input_ids, maskable, torch.full((ROWS,), t), 0.0, mask_token_id=99, generator=generator)


def test_tokens_of_a_row_are_independent() -> None:
    """Every pair of columns is masked together at rate t^2, within 5 sigma of a binomial over the rows."""
    t = 0.3
    masked = masked_batch(t).masked.double()
    together = (masked.T @ masked)[~torch.eye(LENGTH, dtype=torch.bool)]
    bound = 5 * (ROWS * t**2 * (1 - t**2)) ** 0.5
    assert ((together - ROWS * t**2).abs() <= bound).all()


def test_nothing_but_the_drawn_tokens_changes() -> None:
    batch = masked_batch(0.3)
    assert torch.equal(batch.target_ids, torch.arange(LENGTH).repeat(ROWS, 1))
    assert batch.maskable.all()
    assert batch.attention_mask is None
    assert batch.applied == {}


def test_has_no_schedule_and_needs_no_padding_token() -> None:
    assert RandomMasking().schedules() == {}
    assert masked_batch(1.0).masked.all()
