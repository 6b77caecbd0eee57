"""The rate claim of every strategy: a maskable token is masked with probability exactly t, wherever it stands.

Rows are independent, so a column's count of masked tokens is binomial; all bounds are 5 sigma of that binomial.
"""

import pytest
import torch
from torch import Tensor

from coda.masking import (
    BlockMasking,
    MaskedBatch,
    MaskingStrategy,
    ProgressiveMasking,
    RandomMasking,
    TruncatedSuffix,
    UnmaskablePrefix,
)

MASK, PAD = 101, 0
ROWS, LENGTH = 20_000, 19

UNIFORM_RATE: dict[str, MaskingStrategy] = {
    "random": RandomMasking(),
    "k=2": BlockMasking([2]),
    "k=4": BlockMasking([4]),
    "k=8": BlockMasking([8]),
    "k=3": BlockMasking([3]),
    "k=2,4,8": BlockMasking([2, 4, 8]),
    "longer than the row": BlockMasking([4 * LENGTH]),
    "half of the rows": BlockMasking([8], probability=0.5),
}
COMPOSED: dict[str, MaskingStrategy] = {
    "S1": UnmaskablePrefix(),
    "S2": TruncatedSuffix(),
    "S1 and S3": ProgressiveMasking(1.0, 0.0, 1.0, [8]),
    "S2 and S3": ProgressiveMasking(0.0, 1.0, 1.0, [8]),
    "all": ProgressiveMasking(0.4, 0.4, 0.5, [2, 4, 8]),
}
every_uniform = pytest.mark.parametrize("strategy", UNIFORM_RATE.values(), ids=UNIFORM_RATE.keys())
every_composed = pytest.mark.parametrize("strategy", COMPOSED.values(), ids=COMPOSED.keys())


def apply(strategy: MaskingStrategy, maskable: Tensor, t: float | Tensor, seed: int = 0) -> MaskedBatch:
    """Mask a batch of ones."""
    input_ids = torch.ones(maskable.shape, dtype=torch.long)
    times = t if isinstance(t, Tensor) else torch.full((len(maskable),), t)
    generator = torch.Generator().manual_seed(seed)
    return strategy(input_ids, maskable, times, 0.5, mask_token_id=MASK, pad_token_id=PAD, generator=generator)


def all_maskable(rows: int = ROWS, length: int = LENGTH) -> Tensor:
    return torch.ones(rows, length, dtype=torch.bool)


def assert_rate(masked: Tensor, maskable: Tensor, t: float) -> None:
    """Each column's share of masked tokens among its maskable ones is ``t``, within 5 sigma."""
    trials, hits = maskable.sum(dim=0), masked.sum(dim=0)
    bound = 5 * (trials * t * (1 - t)).sqrt()
    off = (hits - trials * t).abs()
    assert trials.max() > 0
    assert (off <= bound).all(), f"rates {(hits / trials).tolist()}, expected {t}"


@every_uniform
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_rate_is_t_at_every_position_first_and_last_included(strategy: MaskingStrategy, t: float) -> None:
    batch = apply(strategy, all_maskable(), t)
    assert_rate(batch.masked, batch.maskable, t)


@every_composed
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_rate_is_t_wherever_a_composed_strategy_leaves_tokens_maskable(strategy: MaskingStrategy, t: float) -> None:
    batch = apply(strategy, all_maskable(), t)
    assert_rate(batch.masked, batch.maskable, t)


@every_uniform
@pytest.mark.parametrize("prefix", [1, 5])
def test_rate_is_t_right_after_a_fixed_prefix(strategy: MaskingStrategy, prefix: int) -> None:
    """The released block masking masks this token at .08 instead of .50 for k = 8."""
    maskable = all_maskable()
    maskable[:, :prefix] = False
    first = slice(prefix, prefix + 1)
    batch = apply(strategy, maskable, 0.5)
    assert_rate(batch.masked[:, first], batch.maskable[:, first], 0.5)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_rate_is_t_right_after_a_random_prefix(size: int) -> None:
    batch = apply(ProgressiveMasking(1.0, 0.0, 1.0, [size]), all_maskable(), 0.5)
    first = batch.maskable.int().argmax(dim=1, keepdim=True)
    assert_rate(batch.masked.gather(1, first), batch.maskable.gather(1, first), 0.5)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_rate_is_t_right_before_a_truncated_suffix(size: int) -> None:
    batch = apply(ProgressiveMasking(0.0, 1.0, 1.0, [size]), all_maskable(), 0.5)
    last = batch.maskable.sum(dim=1, keepdim=True) - 1
    assert_rate(batch.masked.gather(1, last), batch.maskable.gather(1, last), 0.5)


@every_uniform
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 7, -1])
def test_rate_is_t_in_a_region_shorter_than_a_span(strategy: MaskingStrategy, width: int, start: int) -> None:
    """The released block masking masks nothing when fewer than k tokens are maskable."""
    start = start if start >= 0 else LENGTH - width
    maskable = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    maskable[:, start : start + width] = True
    batch = apply(strategy, maskable, 0.3)
    assert_rate(batch.masked, maskable, 0.3)


@pytest.mark.parametrize("length", [1, 2, 3])
@every_uniform
def test_rate_is_t_in_rows_of_few_tokens(strategy: MaskingStrategy, length: int) -> None:
    batch = apply(strategy, all_maskable(length=length), 0.3)
    assert_rate(batch.masked, batch.maskable, 0.3)


@pytest.mark.parametrize("strategy", [*UNIFORM_RATE.values(), *COMPOSED.values()], ids=[*UNIFORM_RATE, *COMPOSED])
def test_t_of_one_masks_every_maskable_token(strategy: MaskingStrategy) -> None:
    batch = apply(strategy, all_maskable(rows=500), 1.0)
    assert torch.equal(batch.masked, batch.maskable)


@every_uniform
def test_rate_is_t_at_the_smallest_noise_level(strategy: MaskingStrategy) -> None:
    """Row counts pooled over columns; tokens of a row are at worst all alike, which the bound takes from the sample."""
    t, rows = 1e-3, 60_000
    shares = apply(strategy, all_maskable(rows), t).masked.double().mean(dim=1)
    bound = 5 * shares.std() / rows**0.5
    assert 0 < bound < t, "the sample is too small to tell t from 0"
    assert abs(shares.mean() - t) <= bound


@every_uniform
def test_every_row_has_its_own_rate(strategy: MaskingStrategy) -> None:
    """A square batch, so that times laid along the columns would go unnoticed by the shapes."""
    size = 1_000
    t = torch.full((size,), 0.2)
    t[size // 2 :] = 0.8
    masked = apply(strategy, all_maskable(size, size), t).masked
    for rows, rate in ((slice(None, size // 2), 0.2), (slice(size // 2, None), 0.8)):
        assert_rate(masked[rows], torch.ones_like(masked[rows]), rate)
