"""Loss weights w(t): how much the masked tokens of a row at noise level t count."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class LossWeight(ABC):
    """A weight that depends on the noise level alone."""

    @abstractmethod
    def __call__(self, t: Tensor) -> Tensor:
        """Return the weights [B] of rows at times ``t`` [B] in (0, 1]."""


class InverseTime(LossWeight):
    """w(t) = 1/t, which makes the loss an upper bound on the negative log-likelihood (arXiv 2510.03270, eq. 6).

    Args:
        max_weight: Clip the weight to at most this value; None leaves the bound exact.
    """

    def __init__(self, max_weight: float | None = None) -> None:
        if max_weight is not None and max_weight < 1.0:
            raise ValueError(
                f"InverseTime.max_weight is {max_weight}; 1/t is never below 1: clip at 1 or more, or set null"
            )
        self.max_weight = max_weight

    def __call__(self, t: Tensor) -> Tensor:
        """See :class:`LossWeight`."""
        weight = t.reciprocal()
        return weight if self.max_weight is None else weight.clamp(max=self.max_weight)


class UniformWeight(LossWeight):
    """w(t) = 1: every masked token counts the same (no longer a likelihood bound)."""

    def __call__(self, t: Tensor) -> Tensor:
        """See :class:`LossWeight`."""
        return torch.ones_like(t)
