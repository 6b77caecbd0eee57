"""Randomness stays float32 when half-precision training makes bfloat16 the default dtype."""

from collections.abc import Iterator

import pytest
import torch

from coda.masking import MaskedBatch, MaskingStrategy, RandomMasking
from coda.model.sampling_coda import row_noise
from coda.objective import LowDiscrepancyTime


@pytest.fixture(autouse=True)
def _bfloat16() -> Iterator[None]:
    """What Lightning's ``bf16-true`` precision does around a training step."""
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def mask(strategy: MaskingStrategy, t: torch.Tensor, seeds: torch.Tensor | None) -> MaskedBatch:
    ids = torch.zeros(len(t), 4096, dtype=torch.int64)
    return strategy(ids, torch.ones_like(ids, dtype=torch.bool), t, 0.5, mask_token_id=1, seeds=seeds)


def test_noise_levels_and_decoding_noise_are_float32() -> None:
    index = torch.arange(4)
    noise = row_noise(index, 0, 1)
    assert noise.dtype == torch.float32
    assert LowDiscrepancyTime().sample(index, 4, noise[:, 0]).dtype == torch.float32


@pytest.mark.parametrize("seeds", [None, torch.arange(256)], ids=["generator", "seeds"])
def test_small_mask_rates_are_exact(seeds: torch.Tensor | None) -> None:
    """bfloat16 noise is a multiple of 2^-8, so a rate of 0.001 would become 0.004."""
    t = torch.full((256,), 0.001, dtype=torch.float32)
    masked = mask(RandomMasking(), t, seeds).masked
    sigma = (0.001 * 0.999 / masked.numel()) ** 0.5
    assert abs(float(masked.float().mean(dtype=torch.float32)) - 0.001) < 5 * sigma
