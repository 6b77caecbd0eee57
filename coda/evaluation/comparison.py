"""When an output equals what EvalPlus expects: its rules (v0.3.1, ``evalplus/eval``), applied to decoded values only.

Exact equality first. Where the problem has a tolerance, or a float or a list or tuple of floats is expected (then 1e-6),
outputs of the same type and length pass within it, relative 1e-7. Some MBPP problems have rules of their own.
"""

import math
import warnings
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import numpy as np

RELATIVE = 1e-7
FLOATS = 1e-6


class Rule(StrEnum):
    """How the outputs of a problem are compared."""

    EQUAL = "equal"
    AS_SET = "as_set"  # MBPP problems whose order and repetitions are free
    NOT_NONE = "not_none"  # MBPP problems that may answer with a match object or None in place of a bool
    NEVER = "never"  # HumanEval/32 as shipped: its check unpacks a float, so no program passes


def matches(out: Any, expected: Any, tolerance: float, rule: Rule) -> bool:
    """Whether the decoded ``out`` is right; never raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(_matches(out, expected, tolerance, rule))
    except Exception:  # ragged arrays, huge integers, unorderable types: whatever numpy cannot compare is not equal
        return False


def _matches(out: Any, expected: Any, tolerance: float, rule: Rule) -> bool:
    if rule is Rule.NEVER:
        return False
    if rule is Rule.NOT_NONE:
        return out == expected if isinstance(out, bool) else expected == (out is not None)
    if rule is Rule.AS_SET:
        return out == set(expected)
    if out == expected:
        return True
    if tolerance == 0 and _is_floats(expected):
        tolerance = FLOATS
    if tolerance == 0 or type(out) is not type(expected):
        return False
    if isinstance(expected, list | tuple) and len(out) != len(expected):
        return False
    return bool(np.allclose(out, expected, rtol=RELATIVE, atol=tolerance))


def _is_floats(value: Any) -> bool:
    if isinstance(value, list | tuple) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _pyramid_surface(base: float, height: float) -> int:
    """Mbpp/581, its other reading: the surface of a square pyramid from its height, rounded."""
    slant = math.hypot(base / 2, height)
    return round(base * base + 2 * base * slant)


def _digit_distance(first: int, second: int) -> int:
    """Mbpp/558, its other reading: the shorter number padded with zeros."""
    a, b = str(first), str(second)
    width = max(len(a), len(b))
    return sum(abs(int(x) - int(y)) for x, y in zip(a.zfill(width), b.zfill(width), strict=True))


# Entry points with a second right answer, as a function of the arguments.
ALTERNATIVES: dict[str, Callable[..., Any]] = {
    "surface_Area": _pyramid_surface,
    "digit_distance_nums": _digit_distance,
}
