"""Values that cross between processes: exactly what was held arrives, and nothing else."""

import json
import math
from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from coda.evaluation.inside.wire import Opaque, decode, encode

Point = namedtuple("Point", "x y")


class Colour(IntEnum):
    RED = 1


VALUES: list[Any] = [
    None, True, 0, -1, 2**63, -(2**63), 10**5000, -(10**5000), 1.5, -0.0, 5e-324, math.inf, -math.inf, 1 + 2j,
    complex(0, math.inf), "", "é\ud800\0", b"\xff\0", [], [[]], [1, [2.0, ("a", None)]], (), (1,), {1, "a"},
    frozenset({(1, 2)}), {}, {"a": [1], 2: {3}}, {(1, "x"): {None: True}}, ["l", 1], ["i", "0x1"], [1, True, 2**70],
    list(range(1000)), [math.inf, 1, "1"], Fraction(1, 3),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(type(value).__name__))
def test_round_trip(value: Any) -> None:
    got = decode(encode(value))
    assert got == value and type(got) is type(value)
    if not isinstance(value, int):
        assert repr(got) == repr(value)  # -0.0, 1 and True, nested types


def test_nan_stays_nan() -> None:
    assert math.isnan(decode(encode(math.nan)))


@pytest.mark.parametrize(
    ("value", "base"),
    [
        (Point(1, 2), (1, 2)),
        (Colour.RED, 1),
        (Counter("aa"), {"a": 2}),
        (OrderedDict(a=1), {"a": 1}),
        (np.float64(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Decimal("0.5"), Fraction(1, 2)),
        (Decimal("Infinity"), math.inf),
    ],
)
def test_subclasses_and_numbers_arrive_as_what_they_hold(value: Any, base: Any) -> None:
    got = decode(encode(value))
    assert got == base and type(got) is type(base)


def test_what_cannot_travel_equals_nothing_but_keeps_its_truth() -> None:
    for value in (object(), slice(1), lambda: 1, type):
        got = decode(encode(value))
        assert isinstance(got, Opaque) and got != value and got != decode(encode(value))
    assert isinstance(decode(encode(np.zeros(2))), Opaque)
    assert decode(encode(object())) and not decode(encode(range(0)))


def test_iterators_arrive_with_their_items() -> None:
    assert list(decode(encode(map(str, [1, 2])))) == ["1", "2"]
    assert sorted(decode(encode({"b": 1, "a": 2}.keys()))) == ["a", "b"]
    assert decode(encode(range(2))) != [0, 1]
    with pytest.raises(TypeError, match="not iterable"):
        iter(decode(encode(object())))


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"",
            b"{}",
            b"[]",
            b'["z"]',
            b'["d",1]',
            b'["s",["l"]]',
            b'["i","x"]',
            b'["q","1","0"]',
            b'["b","0"]',
            b"[[]]",
        ),
        *(b"\xff", b"[", b"[" * 10**5, b'["l",' * 10**5, b"1" * 5000, b'["c",1]', b'["t",{}]', b'["o"]', b'[["l"],1]'),
    ],
    ids=lambda data: str(data[:12]),
)
def test_anything_else_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an encoded value"):
        decode(data)


def test_colliding_hashes_are_refused() -> None:
    keys = [k * (2**61 - 1) for k in range(5000)]
    for tag in ("s", "f"):
        with pytest.raises(ValueError):
            decode(json.dumps([tag, *keys]).encode())
    with pytest.raises(ValueError):
        decode(json.dumps(["d", *[part for key in keys for part in (key, 0)]]).encode())


def test_too_deep_is_an_error() -> None:
    value: list[Any] = []
    for _ in range(500):
        value = [value]
    with pytest.raises(ValueError, match="deep"):
        encode(value)


def test_long_fraction_is_refused() -> None:
    with pytest.raises(ValueError):
        decode(b'["q","0x' + b"1" * 20_000 + b'","0x3"]')
