"""Packed rows: slices of the tokens of each corpus, and the documents in them."""

import numpy as np
import pytest
import torch

from coda.data.mixture import Mixture
from coda.data.packing import PackedRows

LENGTHS = [3, 5, 8, 1, 1, 14, 2, 9]  # of documents, in tokens with their separators; 43 in all


class Stream:
    """Tokens first, first + 1, ... in documents of some lengths; ``spans`` are what was read."""

    def __init__(self, lengths: list[int], first: int = 100) -> None:
        self.ends = np.cumsum(lengths, dtype=np.int64)
        self.numbers = np.arange(first, first + sum(lengths), dtype=np.uint32)
        self.spans: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> np.ndarray:
        self.spans.append((start, stop))
        return self.numbers[start:stop]

    def document_of(self, start: int, stop: int) -> np.ndarray:
        return np.searchsorted(self.ends, np.arange(start, stop), side="right")


def packed(length: int, segments: bool = False, seed: int | None = None) -> PackedRows:
    """One corpus, in order."""
    count = sum(LENGTHS) // length
    mixture = Mixture([count], [count], count, seed)
    return PackedRows([Stream(LENGTHS)], mixture, length, segments)  # type: ignore[list-item]


@pytest.mark.parametrize("length", [2, 4, 7, 43])
def test_rows_are_consecutive_slices(length: int) -> None:
    rows = packed(length)
    stacked = torch.stack([rows[i]["input_ids"] for i in range(len(rows))])
    expected = torch.arange(100, 100 + len(rows) * length).view(-1, length)
    assert torch.equal(stacked, expected)


def test_its_length_is_one_pass_but_there_is_no_end() -> None:
    rows = packed(8)
    assert len(rows) == 5
    assert torch.equal(rows[5 * 10**9 + 2]["input_ids"], rows[2]["input_ids"])


@pytest.mark.parametrize("seed", [None, 3])
def test_a_row_tells_its_number_in_the_order_of_training(seed: int | None) -> None:
    rows = packed(4, seed=seed)
    assert [int(rows[n]["sample"]) for n in range(25)] == list(range(25))
    assert rows[0]["sample"].dtype == torch.int64


def test_rows_come_from_the_place_of_the_mixture() -> None:
    streams = [Stream(LENGTHS), Stream([30], first=1_000), Stream([7, 7], first=5_000)]
    mixture = Mixture([8, 6, 2], [8, 6, 2], 16, seed=1)
    rows = PackedRows(streams, mixture, 5, segments=True)  # type: ignore[arg-type]
    for n in range(40):
        corpus, _, row = mixture.locate(n)
        assert rows[n]["input_ids"].tolist() == streams[corpus].numbers[5 * row : 5 * row + 5].tolist()
    assert {span for span in streams[2].spans} == {(0, 5), (5, 10)}  # the incomplete last row is never read


def test_only_the_rows_asked_for_are_read() -> None:
    rows = packed(4)
    for n in (1, 3):
        rows[n]
    assert rows.streams[0].spans == [(4, 8), (12, 16)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("segments", [False, True])
def test_every_token_of_a_row_is_maskable(segments: bool) -> None:
    row = packed(8, segments)[1]
    assert row["maskable"].tolist() == [True] * 8
    assert row["maskable"].dtype == torch.bool


@pytest.mark.parametrize("length", [4, 5, 8, 21, 43])
def test_segments_tell_the_documents_of_a_row_apart(length: int) -> None:
    """Including a document that ends exactly with a row (8 and 16 of 43), and one that spans several rows."""
    rows = packed(length, segments=True)
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    for i in range(len(rows)):
        expected = document[i * length : (i + 1) * length]
        assert torch.equal(rows[i]["segment_ids"], expected - expected[0])


def test_a_document_that_ends_with_its_row_does_not_reach_into_the_next() -> None:
    rows = packed(8, segments=True)
    assert rows[0]["segment_ids"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert rows[1]["segment_ids"].tolist() == [0] * 8
    assert rows[2]["segment_ids"].tolist() == [0, 1, 2, 2, 2, 2, 2, 2]


def test_a_separator_belongs_to_the_document_before_it() -> None:
    row = packed(4, segments=True)[0]
    assert row["segment_ids"].tolist() == [0, 0, 0, 1]  # the first document is two tokens and its separator


def test_rows_come_without_segments_unless_asked_for() -> None:
    assert "segment_ids" not in packed(4)[0]


def test_rows_are_64_bit_integers() -> None:
    row = packed(4, segments=True)[0]
    assert (row["input_ids"].dtype, row["segment_ids"].dtype) == (torch.int64, torch.int64)


def test_writing_into_a_row_does_not_reach_the_corpus() -> None:
    rows = packed(4)
    rows[0]["input_ids"].zero_()
    assert rows[0]["input_ids"].tolist() == [100, 101, 102, 103]
