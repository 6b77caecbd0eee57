"""pass@k: the probability that at least one of k samples is right, without bias, and how sure we are of its mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over problems and the ends of its confidence interval, all in the unit of what was averaged."""

    mean: float
    low: float
    high: float


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of pass@k of one problem (Chen et al., arXiv 2107.03374, eq. 1): 1 - C(n-c, k) / C(n, k).

    Args:
        samples: n, samples drawn.
        correct: c, how many of them are right.
        k: Samples that a user would draw.

    Raises:
        ValueError: If k is not in 1..n, or c not in 0..n.
    """
    check_k(samples, k)
    if not 0 <= correct <= samples:
        raise ValueError(f"correct is {correct} of {samples} samples; it lies between 0 and their number")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)  # exact integers, however large


def check_k(samples: int, k: int) -> None:
    """Raise ValueError unless pass@k can be estimated from so many samples of each problem."""
    if samples < 1:
        raise ValueError(f"samples is {samples}; draw at least 1 of each problem")
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}, but there are {samples} samples of each problem; choose 1 <= k <= samples")


def bootstrap(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of one value per problem, with the 95% percentile bootstrap interval over problems.

    The problems are resampled, not the samples: the interval says how the mean would move on other problems of the same
    kind. It is a pure function of its arguments.

    Raises:
        ValueError: If there are no values.
    """
    if not len(values):
        raise ValueError("there is no problem to average over; give a task at least one")
    given = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = [given[generator.integers(len(given), size=len(given))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(given.mean()), float(low), float(high))
