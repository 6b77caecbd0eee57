"""Noise levels: the diffusion time t of every row, under the linear noise schedule alpha_t = 1 - t."""

from abc import ABC, abstractmethod

import torch
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

    def sample(
        self,
        batch_size: int,
        *,
        shard: int = 0,
        num_shards: int = 1,
        rotation: int | Tensor = 0,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw float32 [B] times in [eps, 1].

        Args:
            batch_size: B, rows in this micro-batch.
            shard: Index of this micro-batch among all those of one optimizer step, over ranks and accumulation.
            num_shards: How many micro-batches make up one optimizer step.
            rotation: A number shared by all shards of a step and different from step to step, so that a row's place in
                the batch says nothing of its noise level.
            device: Where to draw.
            generator: Seeded generator on ``device``.
        """
        noise = torch.rand(batch_size, device=device, generator=generator, dtype=torch.float32)
        return self.eps + (1.0 - self.eps) * self.spread(noise, shard, num_shards, rotation)

    @abstractmethod
    def spread(self, noise: Tensor, shard: int, num_shards: int, rotation: int | Tensor) -> Tensor:
        """Map independent uniform noise [B] to quantiles [B] in [0, 1)."""


class UniformTime(TimeSampler):
    """Independent times (arXiv 2510.03270, eq. 6)."""

    def spread(self, noise: Tensor, shard: int, num_shards: int, rotation: int | Tensor) -> Tensor:
        """Return the noise as it is."""
        return noise


class LowDiscrepancyTime(TimeSampler):
    """Stratified times: one in each of N equal parts of [eps, 1], where N counts the rows of the whole global batch.

    Each time alone is still uniform (through the rotation), but together they cover the unit interval, which lowers the
    variance of the loss (Kingma et al., Variational Diffusion Models, arXiv 2107.00630, appendix I.1). Neighbouring
    parts go to different ranks, so that all ranks see all noise levels.
    """

    def spread(self, noise: Tensor, shard: int, num_shards: int, rotation: int | Tensor) -> Tensor:
        """Shift the noise of row i into part ``i * num_shards + shard + rotation`` of N, counted around."""
        parts = noise.shape[0] * num_shards
        part = torch.arange(noise.shape[0], device=noise.device) * num_shards + shard + rotation
        return (part % parts + noise) / parts
