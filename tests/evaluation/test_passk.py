"""pass@k and its intervals, against what can be computed by hand or by brute force."""

import itertools
import math

import pytest

from coda.evaluation.passk import bootstrap, pass_at_k


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(samples: int) -> None:
    """All ways to draw k of n samples, counted."""
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        draws = list(itertools.combinations(range(samples), k))
        expected = sum(any(one < correct for one in draw) for draw in draws) / len(draws)
        assert pass_at_k(samples, correct, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_1_is_the_share_of_right_samples() -> None:
    assert [pass_at_k(20, correct, 1) for correct in (0, 5, 20)] == pytest.approx([0, 0.25, 1])


def test_many_samples_neither_overflow_nor_lose_digits() -> None:
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01, rel=1e-9)
    assert pass_at_k(10_000, 9_999, 1) == pytest.approx(0.9999, rel=1e-12)


@pytest.mark.parametrize(("samples", "k"), [(1, 2), (5, 0), (5, -1), (10, 11)])
def test_k_that_cannot_be_estimated_is_an_error_that_names_it(samples: int, k: int) -> None:
    with pytest.raises(ValueError, match=rf"k is {k}, but there are {samples} samples"):
        pass_at_k(samples, 0, k)


@pytest.mark.parametrize("correct", [-1, 6])
def test_more_right_samples_than_there_are_is_an_error(correct: int) -> None:
    with pytest.raises(ValueError, match=rf"correct is {correct} of 5"):
        pass_at_k(5, correct, 1)


def test_the_interval_of_shares_is_that_of_the_binomial() -> None:
    estimate = bootstrap([1.0] * 60 + [0.0] * 140)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 200)
    assert estimate.mean == pytest.approx(0.3)
    assert estimate.low == pytest.approx(0.3 - half, abs=0.012)
    assert estimate.high == pytest.approx(0.3 + half, abs=0.012)


def test_the_interval_is_the_same_every_time() -> None:
    values = [0.1, 0.9, 0.4, 0.0]
    assert bootstrap(values) == bootstrap(values) != bootstrap(values, seed=1)


def test_equal_values_leave_no_doubt() -> None:
    estimate = bootstrap([0.5] * 10)
    assert (estimate.low, estimate.mean, estimate.high) == (0.5, 0.5, 0.5)


def test_no_problem_is_an_error() -> None:
    with pytest.raises(ValueError, match="no problem to average"):
        bootstrap([])
