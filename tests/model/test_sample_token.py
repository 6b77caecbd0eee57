"""The drawing of tokens: exact shares by inversion, and the counter-based noise behind it."""

import pytest
import torch
from torch import Tensor

from coda.model.sampling_coda import NUCLEUS_PREFILTER, row_noise, sample_token

GRID = 2**14  # equidistant noise: every token's share is exact to 1 / GRID


def shares(logits: Tensor, **settings: float | int | None) -> Tensor:
    """Share of every token [V] when the noise runs once through [0, 1)."""
    settings = {"temperature": 1.0, "top_p": None, "top_k": None} | settings
    noise = (torch.arange(GRID) + 0.5) / GRID
    counts = torch.zeros(len(logits))
    for chunk in noise.split(1024):
        tokens = sample_token(logits.expand(len(chunk), -1), chunk, **settings)
        counts += tokens.bincount(minlength=len(logits))
    return counts / GRID


def some_logits(vocab: int = 12, scale: float = 1.5) -> Tensor:
    return scale * torch.randn(vocab, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """The smallest set of most probable tokens with at least ``top_p``, renormalised; plain loop."""
    kept, total = torch.zeros_like(probs), 0.0
    for token in probs.argsort(descending=True):
        if total >= top_p:
            break
        kept[token] = probs[token]
        total += float(probs[token])
    return kept / kept.sum()


def assert_shares(ours: Tensor, expected: Tensor) -> None:
    """Each share is exact to a grid cell at both ends; what has no probability is never drawn."""
    torch.testing.assert_close(ours.double(), expected.double(), atol=2.0 / GRID, rtol=0.0)
    assert (ours[expected == 0] == 0).all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_tokens_follow_the_tempered_softmax(temperature: float) -> None:
    logits = some_logits()
    assert_shares(shares(logits, temperature=temperature), (logits / temperature).softmax(-1))


def test_temperature_zero_takes_the_most_probable() -> None:
    logits = some_logits()
    assert shares(logits, temperature=0.0, top_p=0.5, top_k=4)[logits.argmax()] == 1.0


@pytest.mark.parametrize("top_k", [1, 3, 12, 100])
def test_top_k_keeps_the_k_most_probable(top_k: int) -> None:
    logits = some_logits()
    threshold = logits.sort(descending=True).values[min(top_k, 12) - 1]
    assert_shares(shares(logits, top_k=top_k), logits.masked_fill(logits < threshold, -torch.inf).softmax(-1))


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.7, 0.95, 1.0])
def test_top_p_keeps_the_smallest_sufficient_set(top_p: float) -> None:
    logits = some_logits()
    assert_shares(shares(logits, top_p=top_p), nucleus(logits.softmax(-1), top_p))


def test_the_token_that_crosses_top_p_is_kept() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert_shares(shares(logits, top_p=0.6), torch.tensor([0.625, 0.375, 0.0, 0.0]))


def test_top_p_applies_after_temperature_and_to_what_top_k_left() -> None:
    logits, temperature, top_k, top_p = some_logits(), 1.7, 6, 0.8
    tempered = logits / temperature
    tempered[tempered < tempered.sort(descending=True).values[top_k - 1]] = -torch.inf
    expected = nucleus(tempered.softmax(-1), top_p)
    assert 1 < (expected > 0).sum() < top_k, "the case does not tell them apart"
    assert_shares(shares(logits, temperature=temperature, top_k=top_k, top_p=top_p), expected)


@pytest.mark.parametrize("top_k", [None, 800])
@pytest.mark.parametrize("top_p", [0.4, 0.9])
def test_a_nucleus_wider_than_the_prefilter_is_exact(top_p: float, top_k: int | None) -> None:
    logits = some_logits(vocab=1_000, scale=0.1)
    kept = logits
    if top_k is not None:
        kept = logits.masked_fill(logits < logits.sort(descending=True).values[top_k - 1], -torch.inf)
    expected = nucleus(kept.softmax(-1), top_p)
    assert (expected > 0).sum() > NUCLEUS_PREFILTER
    assert_shares(shares(logits, top_p=top_p, top_k=top_k), expected)


def test_a_narrow_nucleus_beside_a_wide_one_draws_as_alone() -> None:
    flat, peak = torch.zeros(1_000), torch.zeros(1_000).index_fill(0, torch.tensor([7]), 30.0)
    noise = torch.rand(64, generator=torch.Generator().manual_seed(0))
    together = sample_token(torch.stack([flat, peak]).repeat(32, 1), noise, 1.0, 0.9, None)
    for first, logits in enumerate((flat, peak)):
        alone = sample_token(logits.expand(32, -1), noise[first::2], 1.0, 0.9, None)
        assert torch.equal(together[first::2], alone)


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 300}, {"top_p": 0.9, "top_k": 300}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, 1 - 2.0**-23])
def test_the_ends_of_the_noise_draw_tokens_that_have_probability(
    noise: float, dtype: torch.dtype, settings: dict[str, float]
) -> None:
    """The first and the last tokens are impossible, as the mask is; rounding must not reach them."""
    logits = torch.randn(64, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[:, [0, 1, 498, 499]] = -torch.inf
    tokens = sample_token(logits, torch.full((64,), noise), 1.0, settings.get("top_p"), settings.get("top_k"))
    assert ((tokens >= 2) & (tokens <= 497)).all()


def test_noise_is_uniform() -> None:
    """1M numbers in 64 cells: every count within 5 sigma, mean and serial correlation too."""
    rows, length = 500, 2_000
    noise = row_noise(torch.arange(rows), counter=3, length=length).double()
    total = rows * length
    assert noise.min() >= 0
    assert noise.max() < 1
    counts = (noise.flatten() * 64).long().bincount(minlength=64).double()
    assert ((counts - total / 64).abs() < 5 * (total / 64 * 63 / 64) ** 0.5).all()
    centred = noise - 0.5
    for product in (centred, *(centred * centred.roll(1, dims=axis) for axis in (0, 1))):
        assert abs(product.mean()) < 5 * product.std() / total**0.5


def test_noise_of_a_row_depends_on_its_seed_counter_and_position_only() -> None:
    alone = row_noise(torch.tensor([42]), counter=5, length=10)
    assert torch.equal(row_noise(torch.tensor([1, 42, 7]), counter=5, length=30)[1:2, :10], alone)


@pytest.mark.parametrize(("seed", "counter"), [(43, 5), (42, 6), (42 + 2**32, 5), (-42, 5), (47, 0), (0, 47)])
def test_noise_differs_across_seeds_and_counters(seed: int, counter: int) -> None:
    """That some of 100 numbers of 23 bits agree by chance has probability 1e-5."""
    first = row_noise(torch.tensor([42]), counter=5, length=100)
    second = row_noise(torch.tensor([seed]), counter=counter, length=100)
    assert not (first == second).any()


def test_noise_has_23_bits() -> None:
    """So that its product with a float32 total stays below the total."""
    noise = row_noise(torch.arange(100), counter=0, length=1_000)
    assert noise.dtype == torch.float32
    assert torch.equal((noise * 2**23).round(), noise * 2**23)
    assert not torch.equal((noise * 2**22).round(), noise * 2**22)
    assert noise.max() <= 1 - 2.0**-23
