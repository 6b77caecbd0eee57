"""Mixtures: exact proportions at every prefix, every row once per epoch in an order of its own, a pure function."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from coda.data.mixture import Mixture, Portion, check_portions, divide, mix, permute

STAGE_1 = [60.17, 50.75, 38.22, 12.98, 9.18, 5.41, 3.24]  # billions of tokens of each corpus
STAGE_2 = [9.18, 3.24, 1.88, 6.47, 0.20]
ROWS = [40, 13, 1, 27]


def rows_of(tokens: list[float]) -> list[int]:
    return [round(100 * billions) for billions in tokens]


def by_weight(weights: list[float], rows: list[int]) -> Mixture:
    return Mixture(rows, *divide([Portion(str(i), weight) for i, weight in enumerate(weights)], rows), seed=0)


def mixture(rows: list[int], seed: int | None = 0, epochs: int = 1, window: int | None = None) -> Mixture:
    """Every corpus by its size."""
    return Mixture(rows, [count * epochs for count in rows], sum(rows) * epochs, seed, window)


def deviations(mixed: Mixture, samples: int) -> list[float]:
    """For each corpus, how many rows its count was off n times its share at most, over all prefixes n."""
    counts, worst, total = [0] * len(mixed.shares), [0.0] * len(mixed.shares), sum(mixed.shares)
    for n in range(samples):
        counts[mixed.locate(n).corpus] += 1
        for i, (count, share) in enumerate(zip(counts, mixed.shares, strict=True)):
            worst[i] = max(worst[i], abs(count - (n + 1) * share / total))
    return worst


@pytest.mark.parametrize("tokens", [STAGE_1, STAGE_2], ids=["stage 1", "stage 2"])
@pytest.mark.parametrize("weighted", [False, True])
def test_corpora_of_the_report_are_never_a_row_off_their_share(tokens: list[float], weighted: bool) -> None:
    rows = rows_of(tokens)
    mixed = by_weight(tokens, rows) if weighted else mixture(rows)
    assert max(deviations(mixed, sum(rows))) < 1


@pytest.mark.parametrize("corpora", range(2, 13))
def test_any_mixture_stays_within_two_rows_of_its_shares(corpora: int) -> None:
    draw = random.Random(corpora)
    for _ in range(8):
        rows = [int(10 ** draw.uniform(0, 3)) for _ in range(corpora)]
        mixed = mixture(rows)
        assert max(deviations(mixed, min(sum(rows), 1_000))) < 2, rows


@pytest.mark.parametrize("rows", [[7], [1, 1], ROWS, rows_of(STAGE_2), [3, 5, 2, 8, 1, 1, 9, 4, 6, 2]])
@pytest.mark.parametrize("passes", [1, 2, 5])
def test_counts_are_exact_after_whole_passes(rows: list[int], passes: int) -> None:
    mixed = mixture(rows)
    counts = Counter(mixed.locate(n).corpus for n in range(passes * mixed.length))
    assert counts == {i: passes * count for i, count in enumerate(rows)}


def test_epochs_multiply_what_a_pass_holds() -> None:
    """A pass with 3, 1 and 2 epochs of three corpora."""
    rows, epochs = [10, 30, 5], [3, 1, 2]
    mixed = Mixture(rows, *divide([Portion("", None, times) for times in epochs], rows), seed=0)
    assert mixed.length == 70
    counts = Counter((place.corpus, place.row) for place in map(mixed.locate, range(70)))
    assert counts == {(i, row): epochs[i] for i, count in enumerate(rows) for row in range(count)}


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("seed", [None, 0, 7])
def test_every_row_comes_once_in_each_epoch_of_its_corpus(seed: int | None, window: int | None) -> None:
    """A corpus of few samples at a time begins its epochs anywhere."""
    mixed = mixture(ROWS, seed, window=window)
    seen: dict[tuple[int, int], list[int]] = {}
    for n in range(3 * mixed.length):
        corpus, epoch, row = mixed.locate(n)
        seen.setdefault((corpus, epoch), []).append(row)
    assert sorted(seen) == [(corpus, epoch) for corpus in range(len(ROWS)) for epoch in range(3)]
    assert all(sorted(rows) == list(range(ROWS[corpus])) for (corpus, _), rows in seen.items())


def orders(seed: int | None, epochs: int = 2, rows: int = 40, window: int | None = None) -> list[tuple[int, ...]]:
    """Of two corpora of the same size, in each epoch."""
    mixed = mixture([rows, rows], seed, window=window)
    places = [mixed.locate(n) for n in range(epochs * mixed.length)]
    return [tuple(p.row for p in places if (p.corpus, p.epoch) == (c, e)) for c in (0, 1) for e in range(epochs)]


def test_epochs_corpora_and_seeds_have_orders_of_their_own() -> None:
    found = [order for seed in range(5) for order in orders(seed)]
    assert len(set(found)) == len(found) == 20


def test_without_a_seed_rows_come_in_order() -> None:
    assert set(orders(None)) == {tuple(range(40))}


def test_an_epoch_is_not_the_next_seed_or_corpus() -> None:
    """Keys made by adding would give epoch 1 of seed 0 the order of epoch 0 of seed 1."""
    keys = {mix(mix(seed, corpus), epoch) for seed in range(50) for corpus in range(10) for epoch in range(10)}
    assert len(keys) == 5_000


def test_it_is_a_pure_function_of_the_number() -> None:
    one, other = mixture(ROWS, 3), mixture(ROWS, 3)
    backwards = [other.locate(n) for n in reversed(range(300))]
    assert [one.locate(n) for n in range(300)] == backwards[::-1]
    assert one.locate(10**15) == one.locate(10**15) == other.locate(10**15)


def test_a_later_place_continues_the_count() -> None:
    """Far out, where floats would have lost the units: exact proportions and whole epochs still."""
    mixed, start = mixture(ROWS), 10**15 // 81 * 81
    places = [mixed.locate(n) for n in range(start, start + mixed.length)]
    assert Counter(place.corpus for place in places) == dict(enumerate(ROWS))
    assert {place.epoch for place in places} == {10**15 // 81}


@pytest.mark.parametrize("rows", [23, 24, 25, 8, 9])
def test_windows_are_read_one_after_the_other(rows: int) -> None:
    """Whole windows in any order, the rest at the end; rows of a window in any order, but all before the next one."""
    size, whole, seen = 4, rows // 4, set()
    for seed in range(20):
        order = orders(seed, epochs=1, rows=rows, window=size)[0]
        windows = [order[i : i + size] for i in range(0, rows, size)]
        numbers = [min(window) // size for window in windows]
        for number, window in zip(numbers, windows, strict=True):
            assert sorted(window) == list(range(number * size, min(number * size + size, rows)))
        assert sorted(numbers[:whole]) == list(range(whole))
        seen.add(tuple(numbers))
        seen.add(windows[0])
    assert len(seen) > 10


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_a_corpus_of_less_than_two_windows_is_shuffled_as_a_whole(rows: int) -> None:
    assert orders(0, rows=rows, window=4) == orders(0, rows=rows)


def test_weights_keep_their_ratios_and_tiny_ones_get_a_share() -> None:
    shares = by_weight([3, 1, 1e-12], [5, 5, 5]).shares
    assert shares[0] / shares[1] == pytest.approx(3, rel=1e-8)
    assert min(shares) == 1
    assert by_weight([0.3, 0.1], [5, 5]).shares == by_weight([3, 1], [5, 5]).shares


def test_part_of_an_epoch_is_a_part_of_the_rows() -> None:
    mixed = Mixture([40, 10], *divide([Portion("a", None, 0.5), Portion("b", None, 1.1)], [40, 10]), seed=0)
    assert (mixed.shares, mixed.length) == ([20, 11], 31)
    assert Counter(mixed.locate(n).corpus for n in range(31)) == {0: 20, 1: 11}


def test_all_corpora_have_weights_or_none() -> None:
    check_portions([Portion("a", 1.0), Portion("b", 2.0)])
    check_portions([Portion("a"), Portion("b")])
    with pytest.raises(ValueError, match=r"corpus 'b' of data\.sources has no weight"):
        check_portions([Portion("a", 1.0), Portion("b")])


def test_a_weight_repeats_a_small_corpus_and_reads_a_part_of_a_large_one() -> None:
    mixed = by_weight([1, 1], [100, 4])
    assert mixed.length == 104
    places = [mixed.locate(n) for n in range(104)]
    assert Counter(place.corpus for place in places) == {0: 52, 1: 52}
    assert Counter(place.row for place in places if place.corpus == 1) == dict.fromkeys(range(4), 13)
    assert len({place.row for place in places if place.corpus == 0}) == 52


@pytest.mark.parametrize("size", [*range(1, 70), 127, 128, 129, 1000, 1023, 1024, 1025, 4097])
def test_permute_is_a_bijection(size: int) -> None:
    for key in (0, 1, 2**63, 2**64 - 1):
        assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [5, 8, 12, 17, 40, 64, 100, 1_000])
def test_a_row_falls_anywhere(size: int) -> None:
    """Over 4,000 keys every index goes to every place equally often: chi-squared, below its mean plus 5 sigma."""
    trials = 4_000
    keys = [mix(1, key) for key in range(trials)]
    for index in {0, size // 2, size - 1}:
        counts = Counter(permute(index, size, key) for key in keys)
        statistic = sum((counts[place] - trials / size) ** 2 for place in range(size)) / (trials / size)
        assert statistic < (size - 1) + 5 * (2 * (size - 1)) ** 0.5, (index, statistic)


@pytest.mark.parametrize("size", [1_000, 4_096, 50_000])
def test_neighbours_part_ways(size: int) -> None:
    """What stood side by side is on average a third of the corpus apart, and hardly ever still side by side."""
    order = [permute(i, size, 5) for i in range(size)]
    gaps = [abs(a - b) for a, b in pairwise(order)]
    assert abs(sum(gaps) / len(gaps) / size - 1 / 3) < 5 * (1 / 18) ** 0.5 / len(gaps) ** 0.5
    assert sum(gap == 1 for gap in gaps) < 2 + 5 * 2**0.5


def test_orders_of_two_epochs_are_independent() -> None:
    """The number of rows that keep their place is Poisson with mean 1."""
    size, pairs = 500, 200
    fixed = 0
    for key in range(pairs):
        first, second = mix(key, 0), mix(key, 1)
        fixed += sum(permute(i, size, first) == permute(i, size, second) for i in range(size))
    assert abs(fixed / pairs - 1) < 5 / pairs**0.5
