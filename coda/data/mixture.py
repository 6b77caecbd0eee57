"""Mixtures: which row of which corpus the n-th sample is, as a pure function of (seed, n)."""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

ROUNDS = 8  # of the Feistel network; fewer favour some orders where a corpus has few rows
WEIGHT_TOTAL = 1 << 32  # weights are shares of this many parts
SEARCHED = 7  # corpora for which all trees are tried, in a tenth of a second


class Place(NamedTuple):
    """Where a sample is: the index of its corpus, how often that was read before, and the row."""

    corpus: int
    epoch: int
    row: int


@dataclass
class _Node:
    """A group of corpora that share the samples of their parent: a leaf, or two halves."""

    share: int
    corpus: int = -1
    halves: "tuple[_Node, _Node] | None" = None


class Mixture:
    """Deals samples out to corpora in exact proportions, and every corpus's rows in a new order each epoch.

    After n samples every corpus has had n times its share, up to rounding: the corpora are split in two again and again,
    and each half gets the nearest whole number of what is to be split. That adds at most half a row per level, and what
    was added above counts by the half's share. The tree is chosen to keep it small: below one row for the mixtures of
    stage 1 and 2, hardly above it for others. After as many samples as all rows (times epochs) together, the numbers are
    exact. A corpus's own samples go through a permutation of its rows, drawn for each epoch, so that every row comes once
    per epoch.

    Args:
        rows: Rows of each corpus.
        shares: Relative shares, positive integers; the rows times epochs for proportions by size.
        length: Samples in what is called one pass over the mixture.
        seed: Of the permutations; None keeps the rows in order.
        window: Permute rows within windows of this many consecutive rows, and the windows among each other, so that only
            a part of each corpus is in use at a time; None permutes freely.
    """

    def __init__(
        self, rows: list[int], shares: list[int], length: int, seed: int | None, window: int | None = None
    ) -> None:
        self.rows = rows
        self.shares = shares
        self.seed = seed
        self.window = window
        self.length = length
        self.tree = _grow(shares)

    def locate(self, sample: int) -> Place:
        """Return where sample ``sample`` (0, 1, 2, ... without end) is."""
        node, count = self.tree, sample
        while node.halves is not None:
            left, right = node.halves
            before, after = _portion(count, left.share, node.share), _portion(count + 1, left.share, node.share)
            # Sample `count` of this node belongs to the half whose number grows with it.
            node, count = (left, before) if after > before else (right, count - before)
        epoch, index = divmod(count, self.rows[node.corpus])
        if self.seed is None:
            return Place(node.corpus, epoch, index)
        key = mix(mix(self.seed, node.corpus), epoch)
        return Place(node.corpus, epoch, self._permute(index, self.rows[node.corpus], key))

    def _permute(self, index: int, rows: int, key: int) -> int:
        if self.window is None or rows < 2 * self.window:
            return permute(index, rows, key)
        # The rows behind the last whole window stay behind it, in an order of their own.
        windows = rows // self.window
        number, within = divmod(index, self.window)
        if number == windows:
            return windows * self.window + permute(within, rows - windows * self.window, mix(key, windows))
        chosen = permute(number, windows, key)
        return chosen * self.window + permute(within, self.window, mix(key, chosen))


class Portion(NamedTuple):
    """What is asked of a corpus: a weight, or how often to read it in one pass."""

    corpus: str
    weight: float | None = None
    epochs: float = 1.0


def check_portions(portions: list[Portion]) -> None:
    """Raise ValueError if some corpora have weights and others have none."""
    bare = [portion.corpus for portion in portions if portion.weight is None]
    if 0 < len(bare) < len(portions):
        raise ValueError(f"corpus {bare[0]!r} of data.sources has no weight, others have; give all or none one")


def divide(portions: list[Portion], rows: list[int]) -> tuple[list[int], int]:
    """The shares of corpora with so many ``rows`` (see :class:`Mixture`), and the samples of one pass."""
    total = sum(portion.weight or 0.0 for portion in portions)
    if total:
        return [max(round((portion.weight or 0.0) / total * WEIGHT_TOTAL), 1) for portion in portions], sum(rows)
    shares = [max(round(count * portion.epochs), 1) for count, portion in zip(rows, portions, strict=True)]
    return shares, sum(shares)


def permute(index: int, size: int, key: int) -> int:
    """The ``index``-th number of a pseudo-random permutation of 0..size-1 that ``key`` chooses.

    A Feistel network (Luby and Rackoff, 1988) over the next power of four; what falls outside is sent through again.
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(ROUNDS):
            left, right = right, left ^ (mix(key + turn, right) & mask)
        index = left << half | right
        if index < size:
            return index


def mix(key: int, value: int) -> int:
    """Hash two integers into 64 bits (the finaliser of SplitMix64; Steele, Lea and Flood, 2014)."""
    x = (key * 0x9E3779B97F4A7C15 + value * 0xD1342543DE82EF95 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31


def _portion(count: int, share: int, total: int) -> int:
    """``count * share / total``, rounded to the nearest whole number."""
    return (2 * count * share + total) // (2 * total)


def _grow(shares: list[int]) -> _Node:
    """Build the tree whose corpora stay closest to their proportions; beyond ``SEARCHED``, the smallest are paired first."""
    nodes = [_Node(share, corpus=i) for i, share in enumerate(shares)]
    while len(nodes) > SEARCHED:
        nodes.sort(key=lambda node: node.share, reverse=True)
        nodes.append(_pair(nodes.pop(), nodes.pop()))

    @cache
    def best(members: int, deviation: float) -> tuple[float, _Node]:
        """The tree over a set of nodes (bits) that is itself up to ``deviation`` rows off, and how far its leaves are."""
        if members.bit_count() == 1:
            return deviation, nodes[members.bit_length() - 1]
        total = sum(node.share for i, node in enumerate(nodes) if members >> i & 1)
        found: list[tuple[float, int]] = []
        part = (members - 1) & members
        while part:
            if part & members & -members:  # each split once: the half with the first node
                share = sum(node.share for i, node in enumerate(nodes) if part >> i & 1) / total
                halves = (part, share), (members ^ part, 1 - share)
                found.append((max(best(half, round(0.5 + s * deviation, 2))[0] for half, s in halves), part))
            part = (part - 1) & members
        least, part = min(found)
        share = sum(node.share for i, node in enumerate(nodes) if part >> i & 1) / total
        first = best(part, round(0.5 + share * deviation, 2))[1]
        return least, _pair(first, best(members ^ part, round(0.5 + (1 - share) * deviation, 2))[1])

    return best((1 << len(nodes)) - 1, 0.0)[1]


def _pair(first: _Node, second: _Node) -> _Node:
    return _Node(first.share + second.share, halves=(first, second))
