"""Learning-rate schedules: pure functions of the optimizer step, as multiples of the peak rate."""

import math
from abc import ABC, abstractmethod


class LearningRateSchedule(ABC):
    """Linear warm-up from 0 to the peak, then a decay that reaches its end at the last step.

    Args:
        warmup: Steps of warm-up; below 1, the share of all steps.
    """

    def __init__(self, warmup: float = 0) -> None:
        if warmup < 0:
            raise ValueError(f"{type(self).__name__}.warmup is {warmup}; give a number of steps, or a share below 1")
        self.warmup = warmup

    def __call__(self, step: int, total_steps: float) -> float:
        """Return the multiple of the peak rate for optimizer step ``step`` (from 0) of ``total_steps``."""
        warmup = self.warmup * total_steps if self.warmup < 1 else self.warmup
        if step < warmup:
            # The first update already has a positive rate, and the peak is reached on step `warmup`.
            return (step + 1) / (warmup + 1)
        return self.decay(min((step - warmup) / max(total_steps - warmup, 1), 1.0))

    @abstractmethod
    def decay(self, done: float) -> float:
        """Return the multiple of the peak once the share ``done`` of the steps after warm-up is over."""


class ConstantRate(LearningRateSchedule):
    """Stays at the peak."""

    def decay(self, done: float) -> float:
        """See :class:`LearningRateSchedule`."""
        return 1.0


class LinearDecay(LearningRateSchedule):
    """Falls to 0 in a straight line (pre-training and mid-training, arXiv 2510.03270)."""

    def decay(self, done: float) -> float:
        """See :class:`LearningRateSchedule`."""
        return 1.0 - done


class CosineDecay(LearningRateSchedule):
    """Falls to 0 along half a cosine (post-training, arXiv 2510.03270)."""

    def decay(self, done: float) -> float:
        """See :class:`LearningRateSchedule`."""
        return 0.5 * (1.0 + math.cos(math.pi * done))
