"""Making committed tokens masks again, so that early mistakes can be repaired."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks_coda import Block, PerRow


@dataclass
class Committed:
    """The committed tokens of the current blocks, before a denoising step.

    Attributes:
        revisable: bool [b, L]: generated, committed, in the row's current block.
        log_probs: Of each token when it was committed [b, L].
        current: Of each token at the last network evaluation [b, L], if asked for.
        noise: Uniform in [0, 1) [b, L].
        blocks: The current block of every row.
    """

    revisable: Tensor
    log_probs: Tensor
    current: Tensor | None
    noise: Tensor
    blocks: list[Block]


class Remasking(PerRow, ABC):
    """Chooses, before each denoising step, which committed tokens of the current block become masks again."""

    reads_committed = False  # whether it needs the network's present probability of committed tokens

    @abstractmethod
    def choose(self, committed: Committed) -> Tensor:
        """Return bool [b, L], a subset of ``committed.revisable``."""


class ReMDM(Remasking):
    """Each token with probability min(rate, s / (1 - t)): ReMDM's capped schedule for a linear one (arXiv 2503.00307).

    In predictor-corrector form: what is remasked may be predicted again in the same step, and the step commits as many
    tokens more, so that the schedule's number of masked tokens holds after every step.

    Args:
        rate: Largest probability per step.
        eps: Noise level at which denoising ends.
    """

    def __init__(self, rate: float, eps: float) -> None:
        self.rate = rate
        self.eps = eps

    def probability(self, block: Block) -> float:
        """Of making a committed token a mask in the current step."""
        t, s = block.time(self.eps)
        return min(self.rate, s / (1 - t)) if t < 1 else 0.0

    def choose(self, committed: Committed) -> Tensor:
        """See :meth:`Remasking.choose`."""
        probability = [[self.probability(block)] for block in committed.blocks]
        return committed.revisable & (committed.noise < torch.tensor(probability, device=committed.noise.device))


class ConfidenceDrop(Remasking):
    """Tokens whose probability has fallen by more than ``drop`` since they were committed, each at most once.

    The probability is the network's with the token in view. Costs logits for the committed tokens of the block.
    """

    reads_committed = True

    def __init__(self, drop: float) -> None:
        self.drop = drop
        self.before: Tensor | None = None  # remasked before, bool [b, L]

    def choose(self, committed: Committed) -> Tensor:
        """See :meth:`Remasking.choose`."""
        if committed.current is None:
            return torch.zeros_like(committed.revisable)
        if self.before is None:
            self.before = torch.zeros_like(committed.revisable)
        fallen = committed.log_probs.exp() - committed.current.exp() > self.drop
        chosen = committed.revisable & fallen & ~self.before
        self.before = self.before | chosen
        return chosen

    def keep(self, rows: list[int]) -> None:
        """See :meth:`PerRow.keep`."""
        if self.before is not None:
            self.before = self.before[torch.tensor(rows, device=self.before.device, dtype=torch.long)]


__all__ = ["Committed", "ConfidenceDrop", "ReMDM", "Remasking"]
