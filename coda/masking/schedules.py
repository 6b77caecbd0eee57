"""Schedules: pure functions of training progress, so that a checkpoint has nothing to remember.

``progress`` is the share of optimizer steps done, from 0 at the first step to 1 at the end of training. Every schedule is
plain arithmetic, hence works on a Python float (for logging) and on a device tensor (for masking) alike: on XLA the
value moves without a recompile.
"""

from abc import ABC, abstractmethod
from typing import TypeVar

from torch import Tensor

Progress = TypeVar("Progress", float, Tensor)


class Schedule(ABC):
    """A probability that changes over training."""

    @abstractmethod
    def __call__(self, progress: Progress) -> Progress:
        """Return the value at ``progress`` in [0, 1]: a float for a float, a tensor of the same shape for a tensor."""


class Constant(Schedule):
    """The same probability throughout.

    Args:
        value: A probability in [0, 1].
    """

    def __init__(self, value: float) -> None:
        self.value = check_probability("Constant.value", value)

    def __call__(self, progress: Progress) -> Progress:
        """See :class:`Schedule`."""
        return progress * 0.0 + self.value


class Linear(Schedule):
    """A straight line from the first step to the last.

    Args:
        start: Probability at progress 0, in [0, 1].
        end: Probability at progress 1, in [0, 1].
    """

    def __init__(self, start: float, end: float) -> None:
        self.start = check_probability("Linear.start", start)
        self.end = check_probability("Linear.end", end)

    def __call__(self, progress: Progress) -> Progress:
        """See :class:`Schedule`."""
        return progress * (self.end - self.start) + self.start


class PerEpoch(Schedule):
    """A table with one probability per epoch; the run is divided into as many equal parts as the table has entries.

    The report's mid-training table (arXiv 2510.03270, table 3) is ``PerEpoch([0.01, 0.05, 0.10, 0.15, 0.20])`` for
    S1 and for S2, and ``PerEpoch([0.05, 0.10, 0.15, 0.20, 0.25])`` for S3.

    Args:
        values: One probability in [0, 1] for each epoch, in order.
    """

    def __init__(self, values: list[float]) -> None:
        if not values:
            raise ValueError("PerEpoch.values is empty; give one probability per epoch, for example [0.01, 0.05, 0.1]")
        self.values = [check_probability(f"PerEpoch.values[{i}]", value) for i, value in enumerate(values)]

    def __call__(self, progress: Progress) -> Progress:
        """See :class:`Schedule`."""
        # A sum of steps rather than a table look-up: no index, so no host sync and nothing to keep on a device.
        value = progress * 0.0 + self.values[0]
        for epoch in range(1, len(self.values)):
            started = progress >= epoch / len(self.values)
            value = value + started * (self.values[epoch] - self.values[epoch - 1])
        return value


def check_probability(name: str, value: float) -> float:
    """Return ``value`` as a float if it lies in [0, 1].

    Raises:
        ValueError: If it does not; the message names the setting.
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}; a probability lies between 0 and 1")
    return float(value)


def as_schedule(name: str, probability: float | Schedule) -> Schedule:
    """Turn a plain number into a :class:`Constant`, so that strategies treat both alike."""
    if isinstance(probability, Schedule):
        return probability
    return Constant(check_probability(name, probability))
