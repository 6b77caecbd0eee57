"""A stand-in for outputs that are too large to send: Mbpp/255 has one of a hundred million numbers, a gigabyte as text.

Python's own hashes: equal values have equal ones, and with the fixed seed that every candidate has (see
`coda.evaluation.places.environment`) a text has the same one in every process. A wrong output of this size with the
right 64-bit hash passes; the smaller outputs of the same problem are compared in full.
"""

from typing import Any

LARGE = 1_000_000  # items in the inner containers together


def digest(value: Any) -> list[Any] | None:
    """Kinds, counts and hash of a large list or tuple of lists or tuples; None for everything else."""
    if type(value) not in (list, tuple) or not value:
        return None
    kinds = set(map(type, value))
    if len(kinds) > 1 or not kinds <= {list, tuple}:
        return None
    count = sum(map(len, value))
    if count < LARGE:
        return None
    (inner,) = kinds
    try:
        hashes = tuple(map(hash, value if inner is tuple else map(tuple, value)))
    except TypeError:  # something in there has no hash
        return None
    return [type(value).__name__, inner.__name__, len(value), count, hash(hashes)]
