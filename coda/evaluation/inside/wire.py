"""Values between processes that do not trust each other: JSON with tags, sizes and depths bounded. No pickle.

Atoms are JSON's own: None, bool, int, float (with inf and nan), str (ASCII escapes, so lone surrogates survive). All
else is a list that starts with a tag: ``l`` list, ``t`` tuple, ``s`` set, ``f`` frozenset, ``d`` dict (keys and values
in turn), ``i`` large int (hex), ``c`` complex, ``b`` bytes (hex), ``q`` exact fraction (Fraction, Decimal; hex), ``o``
anything else. A value of a subclass travels as its base: whatever its methods claim, only what it holds arrives.
"""

import json
import sys
from collections import Counter
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from itertools import chain, islice
from typing import Any

MAX_DEPTH = 100
MAX_ITEMS = 1_000_000  # of an iterator that is sent as its items
MAX_COLLISIONS = 1000  # of hashes in one set or dict: more are an attack on the reader's time
LARGE = 1 << 63
LONGEST_PART = 10_000  # hexadecimal digits of a fraction's two parts
PLAIN = frozenset({type(None), bool, float, str})
NODES = frozenset({list, dict})
INTEGERS = frozenset({int, bool})
CONTAINERS: tuple[tuple[Any, str], ...] = ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "f"))
ITERATED: Any = (Iterator, range, KeysView, ValuesView, ItemsView)
MAKERS: dict[str, Any] = {"l": list, "t": tuple, "s": set, "f": frozenset}


class Opaque:
    """Stands for a value that cannot travel: equal to nothing, true or false as it was, iterable where it was one."""

    def __init__(self, kind: str, truth: bool, items: list[Any] | None = None) -> None:
        self.kind, self.truth, self.items = kind, truth, items

    def __bool__(self) -> bool:
        return self.truth

    def __iter__(self) -> Iterator[Any]:
        if self.items is None:
            raise TypeError(f"'{self.kind}' object is not iterable")
        return iter(self.items)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def encode(value: Any) -> bytes:
    """``value`` as ASCII JSON; raises `ValueError` where it is nested too deeply."""
    return json.dumps(_pack(value, 0), separators=(",", ":")).encode("ascii")


def decode(data: bytes) -> Any:
    """The value that `encode` wrote; raises `ValueError` for anything else."""
    try:
        return _unpack(json.loads(data))
    except (ValueError, TypeError, LookupError, RecursionError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"not an encoded value: {type(error).__name__}") from None


def _pack(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in PLAIN:
        return value
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, int):
        number = int.__index__(value) if kind is int else int.__add__(value, 0)
        return number if -LARGE < number < LARGE else ["i", hex(number)]
    for base, tag in CONTAINERS:
        if isinstance(value, base):
            return _pack_items(tag, list(value), depth)
    if isinstance(value, dict):
        return _pack_items("d", list(chain.from_iterable(dict.items(value))), depth)
    return _pack_rare(value, depth)


def _pack_items(tag: str, items: list[Any], depth: int) -> list[Any]:
    kinds = set(map(type, items))
    small = kinds <= INTEGERS and (not items or (min(items) > -LARGE and max(items) < LARGE))
    if small or kinds <= PLAIN:  # the common case, without a call for each item
        return [tag, *items]
    return [tag, *(_pack(item, depth + 1) for item in items)]


def _pack_rare(value: Any, depth: int) -> Any:
    if isinstance(value, float):
        return float.__add__(value, 0.0)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return ["c", complex.__add__(value, 0).real, complex.__add__(value, 0).imag]
    if isinstance(value, bytes):
        return ["b", bytes.hex(value)]
    if _is_a(value, "fractions", "Fraction") or _is_a(value, "decimal", "Decimal"):
        return _pack_fraction(value, depth)
    if _is_a(value, "numpy", "generic"):
        return _pack(value.item(), depth + 1)
    return ["o", type(value).__name__[:100], _truth(value), _items(value, depth)]


def _pack_fraction(value: Any, depth: int) -> Any:
    try:
        top, bottom = value.as_integer_ratio()
    except (ValueError, OverflowError):  # Decimal's infinities and nan
        return _pack(float(value), depth)
    return ["q", hex(top), hex(bottom)]


def _is_a(value: Any, module: str, name: str) -> bool:
    """Whether ``value`` is an instance of a class of a module that may never have been imported."""
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and isinstance(value, found)


def _truth(value: Any) -> bool:
    try:
        return bool(value)
    except Exception:
        return False


def _items(value: Any, depth: int) -> Any:
    """The items of an iterator, a range or a view of a dict; None for all else."""
    if not isinstance(value, ITERATED):
        return None
    return _pack_items("l", list(islice(value, MAX_ITEMS)), depth + 1)


def _unpack(node: Any) -> Any:
    if type(node) is not list:
        if type(node) is dict:
            raise ValueError("a bare object")
        return node
    tag, *parts = node
    if tag in MAKERS or tag == "d":
        items = [_unpack(part) for part in parts] if NODES & set(map(type, parts)) else parts
        if tag == "d":
            _refuse_collisions(items[::2])
            return dict(zip(items[::2], items[1::2], strict=True))
        if tag in "sf":
            _refuse_collisions(items)
        return MAKERS[tag](items)
    return _unpack_rare(tag, parts)


def _unpack_rare(tag: Any, parts: list[Any]) -> Any:
    if tag == "i":
        return int(parts[0], 16)
    if tag == "c":
        return complex(float(parts[0]), float(parts[1]))
    if tag == "b":
        return bytes.fromhex(parts[0])
    if tag == "q":
        from fractions import Fraction

        if max(map(len, parts)) > LONGEST_PART:  # reducing it would take the reader long
            raise ValueError("a long fraction")
        return Fraction(int(parts[0], 16), int(parts[1], 16))
    if tag == "o":
        return Opaque(str(parts[0]), parts[1] is True, None if parts[2] is None else list(_unpack(parts[2])))
    raise ValueError("an unknown tag")


def _refuse_collisions(items: list[Any]) -> None:
    if len(items) > MAX_COLLISIONS and max(Counter(map(hash, items)).values()) > MAX_COLLISIONS:
        raise ValueError("too many equal hashes")
