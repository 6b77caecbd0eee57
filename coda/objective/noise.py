"""Noise levels: the diffusion time t of every row, under the linear noise schedule alpha_t = 1 - t."""

import math
from abc import ABC, abstractmethod
from functools import cache

from torch import Tensor


class TimeSampler(ABC):
    """Draws one diffusion time per row; t is the probability with which each of its tokens is masked.

    Args:
        eps: Smallest t. Times are uniform in [eps, 1], because the weight 1/t grows without bound at 0.
    """

    def __init__(self, eps: float = 1e-3) -> None:
        if not 0.0 < eps < 1.0:
            name = type(self).__name__
            raise ValueError(f"{name}.eps is {eps}; the smallest noise level lies between 0 and 1, e.g. 1e-3")
        self.eps = eps

    def sample(self, index: Tensor, batch_size: int, noise: Tensor, rotation: int | Tensor = 0) -> Tensor:
        """Draw float32 [B] times in [eps, 1].

        Args:
            index: int64 [B], the number of each row; consecutive over the rows of a global batch, wherever it begins.
            batch_size: N, rows in the global batch, over ranks and accumulated micro-batches.
            noise: float32 [B], uniform in [0, 1), one number per row.
            rotation: A number shared by a global batch and different from one to the next, so that a row's place in it
                says nothing of its noise level.
        """
        return self.eps + (1.0 - self.eps) * self.spread(index, batch_size, noise, rotation)

    @abstractmethod
    def spread(self, index: Tensor, batch_size: int, noise: Tensor, rotation: int | Tensor) -> Tensor:
        """Map independent uniform noise [B] to quantiles [B] in [0, 1)."""


class UniformTime(TimeSampler):
    """Independent times (arXiv 2510.03270, eq. 6)."""

    def spread(self, index: Tensor, batch_size: int, noise: Tensor, rotation: int | Tensor) -> Tensor:
        """Return the noise as it is."""
        return noise


class LowDiscrepancyTime(TimeSampler):
    """Stratified times: one in each of N equal parts of [eps, 1], where N counts the rows of the whole global batch.

    Each time alone is still uniform (through the rotation), but together they cover the unit interval, which lowers the
    variance of the loss (Kingma et al., Variational Diffusion Models, arXiv 2107.00630, appendix I.1). Neighbouring
    rows go to distant parts, so that every rank and micro-batch sees all noise levels, however the rows are dealt out.
    """

    def spread(self, index: Tensor, batch_size: int, noise: Tensor, rotation: int | Tensor) -> Tensor:
        """Shift the noise of row i into part ``(i * stride + rotation) mod N``, with a stride that visits all parts."""
        part = (index * golden_stride(batch_size) + rotation % batch_size) % batch_size
        return (part + noise) / batch_size


@cache
def golden_stride(parts: int) -> int:
    """The number nearest to ``parts`` over the golden ratio that shares no factor with ``parts``."""
    target = round(parts * (math.sqrt(5) - 1) / 2)
    nearby = sorted(range(max(target - 64, 1), target + 64), key=lambda stride: abs(stride - target))
    return next(stride for stride in nearby if math.gcd(stride, parts) == 1)
