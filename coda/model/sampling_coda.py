"""Drawing tokens, and the counter-based noise that all random choices of the sampler use."""

import torch
from torch import Tensor

NUCLEUS_PREFILTER = 256  # top-p looks at this many candidates before it sorts the whole vocabulary

# exp(-80) is lost beside 1 in any precision. Smaller exponentials are denormal, and a CPU takes ten times as long for them.
NEGLIGIBLE = -80.0


def sample_token(logits: Tensor, noise: Tensor, temperature: float, top_p: float | None, top_k: int | None) -> Tensor:
    """Sample token ids [M] from ``logits`` [M, V] by inverting the distribution function at ``noise`` [M].

    ``noise`` is uniform in [0, 1) with 23 bits, so that its product with the total stays below the total in float32 and
    never points behind the last candidate that has any probability.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    scores = logits / temperature
    candidates = scores.shape[-1] if top_k is None else min(top_k, scores.shape[-1])
    if top_p is not None and top_p < 1:
        total = log_total(scores if top_k is None else scores.topk(candidates).values)
        few = min(candidates, NUCLEUS_PREFILTER)
        probs, ids = _best(scores, few, total)
        if few < candidates and bool((probs.sum(dim=-1) < top_p).any()):
            probs, ids = _best(scores, candidates, total)
        probs = probs.masked_fill(probs.cumsum(dim=-1) - probs >= top_p, 0.0)
    elif top_k is not None:
        probs, ids = _best(scores, candidates, log_total(scores))
    else:
        probs, ids = scores.softmax(dim=-1), None
    cumulative = probs.cumsum(dim=-1)
    index = (cumulative <= noise.to(probs.dtype)[:, None] * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    return (index if ids is None else ids.gather(1, index)).squeeze(1)


def weights(scores: Tensor) -> Tensor:
    """Exponentials of ``scores`` [M, V], whose largest is 0 in every row. Overwrites ``scores`` with what it took."""
    return scores.clamp_(min=NEGLIGIBLE).exp()


def log_total(scores: Tensor) -> Tensor:
    """Logarithm of the summed exponentials [M] of ``scores`` [M, V]; much faster than logsumexp on peaked ones."""
    largest = scores.amax(dim=-1, keepdim=True)
    return weights(scores - largest).sum(dim=-1).log() + largest.squeeze(1)


def _best(scores: Tensor, count: int, total: Tensor) -> tuple[Tensor, Tensor]:
    values, ids = scores.topk(count, dim=-1)
    return (values - total[:, None]).exp(), ids


def row_noise(seeds: Tensor, counter: int, length: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 [B, length], a pure function of (seed of the row, counter, position).

    Counter-based (a SplitMix64 finaliser) instead of a stateful generator: a row draws the same numbers in any batch.
    """
    position = torch.arange(length, device=seeds.device)
    bits = _shifted(_mix(_mix(_mix(seeds) + counter)[:, None] + position), 41)
    return bits.to(torch.float32) * 2.0**-23


def _mix(x: Tensor) -> Tensor:
    x = x + -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; devices disagree on what ``>>`` does to negative numbers (XLA divides)."""
    return ((x & 0x7FFFFFFFFFFFFFFF) >> bits) + (x < 0) * (1 << (63 - bits))


__all__ = ["log_total", "row_noise", "sample_token", "weights"]
