"""Which masked tokens a denoising step commits: their order is the algorithm's, how many is a rule's."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .blocks_coda import Block, PerRow


@dataclass
class Candidates:
    """The masked tokens of the current blocks, as a denoising step predicts them.

    Attributes:
        eligible: bool [b, L]; the other tensors [b, L] hold no information elsewhere.
        tokens: Drawn tokens. A rule may replace them.
        log_probs: Of the drawn tokens.
        score: Confidence, noise of ``alg_temp`` included; the highest is committed first. -inf where not eligible.
        entropy: In nats, if the rule needs it.
        noise: Uniform in [0, 1), for the rule's own use.
        token_noise: The noise with which ``tokens`` were drawn.
        logits: Of all eligible tokens in row-major order [M, V], if the rule needs them.
        ids: The canvas.
        blocks: The current block of every row.
    """

    eligible: Tensor
    tokens: Tensor
    log_probs: Tensor
    score: Tensor
    noise: Tensor
    token_noise: Tensor
    ids: Tensor
    blocks: list[Block]
    entropy: Tensor | None = None
    logits: Tensor | None = None

    def rank(self) -> Tensor:
        """Place of each column in its row's order, int64 [b, L]; ties from left to right."""
        return _inverse(self.score.argsort(dim=1, descending=True, stable=True))

    def column(self, values: Sequence[float]) -> Tensor:
        """One number per row, as [b, 1]."""
        return torch.tensor(values, device=self.ids.device, dtype=torch.float32)[:, None]


class CommitRule(PerRow, ABC):
    """Decides how many of the candidates are committed, at least one of each row that has any."""

    wanted: frozenset[str] = frozenset()  # optional fields of Prediction that it needs

    @abstractmethod
    def choose(self, candidates: Candidates) -> Tensor:
        """Return the tokens to commit, bool [b, L], a subset of ``candidates.eligible``."""

    def left_after(self, block: Block) -> int | None:
        """Masked tokens left in ``block`` after this step, or None if only the device knows."""
        return None


class Counted(CommitRule):
    """A number of tokens that is known beforehand."""

    def choose(self, candidates: Candidates) -> Tensor:
        """See :meth:`CommitRule.choose`."""
        amount = [block.left - (self.left_after(block) or 0) for block in candidates.blocks]
        return candidates.eligible & (candidates.rank() < candidates.column(amount))


class Scheduled(Counted):
    """Linear schedule: after step i of N, ``floor(masked * (N - 1 - i) / N)`` tokens of the block are left.

    Each row follows its own schedule. A number of tokens that depended on other rows would give a row another result in
    company than alone.
    """

    def left_after(self, block: Block) -> int:
        """See :meth:`CommitRule.left_after`."""
        steps = min(block.steps, block.masked)
        return block.masked * max(steps - 1 - block.step, 0) // steps


class TokensPerStep(Counted):
    """The same number of tokens at every step: ``tokens_per_step``."""

    def __init__(self, count: int) -> None:
        self.count = count

    def left_after(self, block: Block) -> int:
        """See :meth:`CommitRule.left_after`."""
        return max(block.left - self.count, 0)


class Bernoulli(CommitRule):
    """The ancestral sampler of absorbing diffusion: each token with probability 1 - s/t (MDLM, arXiv 2406.07524).

    Args:
        eps: Noise level at which denoising ends.
        remasked: Probability with which :class:`ReMDM` has made committed tokens masks again, given (t, s).
    """

    def __init__(self, eps: float, remasked: Any = None) -> None:
        self.eps = eps
        self.remasked = remasked

    def choose(self, candidates: Candidates) -> Tensor:
        """See :meth:`CommitRule.choose`."""
        probability = [1.0 - self._kept(block) for block in candidates.blocks]
        return candidates.eligible & (candidates.noise < candidates.column(probability))

    def _kept(self, block: Block) -> float:
        t, s = block.time(self.eps)
        noisy = t + (1 - t) * self.remasked(block) if self.remasked else t
        return s / noisy


class Threshold(CommitRule):
    """Every token of at least this probability, and the first in any case (Fast-dLLM, arXiv 2505.22618)."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def choose(self, candidates: Candidates) -> Tensor:
        """See :meth:`CommitRule.choose`."""
        sure = candidates.log_probs.exp() >= self.threshold
        return candidates.eligible & (sure | (candidates.rank() == 0))


class Factor(CommitRule):
    """The n most probable tokens, n the largest with (n + 1)(1 - p_n) < ``factor`` (Fast-dLLM, arXiv 2505.22618)."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def choose(self, candidates: Candidates) -> Tensor:
        """See :meth:`CommitRule.choose`."""
        log_probs = candidates.log_probs.masked_fill(~candidates.eligible, -torch.inf)
        falling, order = log_probs.sort(dim=1, descending=True, stable=True)
        place = torch.arange(1, order.shape[1] + 1, device=order.device)
        fits = (place + 1) * (1 - falling.exp()) < self.factor
        return candidates.eligible & _first(fits).gather(1, _inverse(order))


class EntropyBound(CommitRule):
    """As many tokens, in order, as keep summed minus largest entropy under ``entropy_bound`` (EB-Sampler, arXiv 2505.24857).

    The difference bounds the error of drawing them independently of each other.
    """

    wanted = frozenset({"entropy"})

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def choose(self, candidates: Candidates) -> Tensor:
        """See :meth:`CommitRule.choose`."""
        assert candidates.entropy is not None
        order = candidates.score.argsort(dim=1, descending=True, stable=True)
        entropy = candidates.entropy.masked_fill(~candidates.eligible, 0.0).gather(1, order)
        fits = entropy.cumsum(dim=1) - entropy.cummax(dim=1).values <= self.bound
        return candidates.eligible & _first(fits).gather(1, _inverse(order))


def _inverse(order: Tensor) -> Tensor:
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def _first(fits: Tensor) -> Tensor:
    """The leading run of each row, bool [b, L], never empty."""
    run = fits.int().cumprod(dim=1).bool()
    run[:, 0] = True
    return run


# The setting that asks for each rule; its value is the rule's argument.
RULES: dict[str, type] = {
    "tokens_per_step": TokensPerStep,
    "threshold": Threshold,
    "factor": Factor,
    "entropy_bound": EntropyBound,
}

__all__ = [
    "RULES",
    "Bernoulli",
    "Candidates",
    "CommitRule",
    "EntropyBound",
    "Factor",
    "Scheduled",
    "Threshold",
    "TokensPerStep",
]
