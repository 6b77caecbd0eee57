"""EvalPlus's rules of comparison."""

import math
from typing import Any

import pytest

from coda.evaluation.comparison import Rule, matches
from coda.evaluation.inside.wire import Opaque


@pytest.mark.parametrize(
    ("out", "expected", "tolerance", "right"),
    [
        (1, 1, 0, True),
        (1.0, 1, 0, True),  # exact equality knows no types
        (True, 1, 0, True),
        ((1, 2), [1, 2], 0, False),
        (1.0000001, 1.0, 0, True),  # floats get 1e-6 unasked
        (1.00001, 1.0, 0, False),
        (1.00001, 1.0, 1e-4, True),
        ([1.0, 2.0000001], [1.0, 2.0], 0, True),
        ((1.0, 2.0000001), [1.0, 2.0], 0, False),  # another type
        ([2.0], [1.0, 2.0], 0, False),
        ([1.0], [], 0, False),  # the layout of the hub lets this pass: an empty list "is floats"
        ([[1.0000001]], [[1.0]], 0, False),  # only flat lists of floats get the tolerance
        ([[1.0000001]], [[1.0]], 1e-6, True),
        (math.inf, math.inf, 0, True),
        (math.nan, math.nan, 0, False),
        (1, 1.0000001, 0, False),
        (10**400, 1.0, 1e-4, False),
        ([10**400], [1.0], 1e-4, False),
        ("1.0", 1.0, 1e-4, False),
        ({1: 1.0}, {1: 1.0000001}, 1e-4, False),
        (Opaque("object", True), 1, 0, False),
        ([Opaque("object", True)], [1.0], 0, False),
        (None, 1.0, 1e-4, False),
    ],
)
def test_equal(out: Any, expected: Any, tolerance: float, right: bool) -> None:
    assert matches(out, expected, tolerance, Rule.EQUAL) is right


def test_as_set() -> None:
    assert matches({1, 2}, [2, 1, 1], 0, Rule.AS_SET)
    assert not matches({1}, [2, 1], 0, Rule.AS_SET)
    assert not matches([2, 1], [2, 1], 0, Rule.AS_SET)  # the candidate's side makes the set


@pytest.mark.parametrize(
    ("out", "expected", "right"),
    [
        (True, True, True),
        (False, True, False),
        (False, False, True),
        (None, False, True),
        (None, True, False),
        (Opaque("Match", True), True, True),
        (Opaque("Match", True), False, False),
        (0, False, False),
    ],
)
def test_not_none(out: Any, expected: bool, right: bool) -> None:
    assert matches(out, expected, 0, Rule.NOT_NONE) is right


def test_never() -> None:
    assert not matches(1, 1, 1e-4, Rule.NEVER)
