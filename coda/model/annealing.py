"""Attention-mask annealing: a gradual way from the parent's causal attention to attention on both sides.

The report switches at once (arXiv 2510.03270, section 3) because FlashAttention takes no custom masks; this is the
alternative for those who adapt on few tokens.
"""

from abc import ABC, abstractmethod

import torch

from coda.model.modeling_coda import MaskFunction


class AttentionAnnealing(ABC):
    """Restricts attention to the future for part of training."""

    @abstractmethod
    def visible(
        self, length: int, progress: float, device: torch.device, generator: torch.Generator | None
    ) -> MaskFunction | None:
        """Return which keys a query may look at in this step, or None once nothing is hidden.

        Args:
            length: Tokens per row.
            progress: Share of training done, in [0, 1].
            device: Where the mask lives.
            generator: Seeded generator on ``device``.
        """


class RandomAnnealing(AttentionAnnealing):
    """Reveal each (query, later key) pair with a probability that grows linearly from 0 to 1 (arXiv 2410.17891).

    Args:
        until: Share of training after which all tokens see all others. Needs an L x L bool per step until then.
    """

    def __init__(self, until: float = 0.2) -> None:
        if not 0.0 < until <= 1.0:
            raise ValueError(
                f"RandomAnnealing.until is {until}; give the share of training it lasts, above 0 and up to 1"
            )
        self.until = until

    def visible(
        self, length: int, progress: float, device: torch.device, generator: torch.Generator | None
    ) -> MaskFunction | None:
        """See :meth:`AttentionAnnealing.visible`."""
        if progress >= self.until:
            return None
        revealed = (
            torch.rand(length, length, device=device, generator=generator, dtype=torch.float32) < progress / self.until
        )
        seen = revealed | torch.ones_like(revealed).tril()
        return lambda b, h, q, k: seen[q, k]
