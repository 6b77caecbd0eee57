"""Packed rows: slices of the token stream, and the documents in them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from coda.data.packing import PackedRows
from coda.data.store import TokenStore

LENGTHS = [3, 5, 8, 1, 1, 14, 2, 9]  # of documents, in tokens with their separators; 43 in all


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    """Tokens 100, 101, ... in documents of ``LENGTHS``, and an empty held-out split."""
    for split, lengths in (("train", LENGTHS), ("val", [])):
        np.arange(100, 100 + sum(lengths), dtype=np.uint32).tofile(tmp_path / f"{split}.tokens")
        np.save(tmp_path / f"{split}.ends.npy", np.cumsum(lengths, dtype=np.int64))
    (tmp_path / "manifest.json").write_text("{}")
    return TokenStore(tmp_path)


@pytest.mark.parametrize("length", [2, 4, 7, 43])
def test_rows_are_consecutive_slices(store: TokenStore, length: int) -> None:
    rows = PackedRows(store, "train", length, segments=False)
    stacked = torch.stack([rows[i]["input_ids"] for i in range(len(rows))])
    expected = torch.arange(100, 100 + len(rows) * length).view(-1, length)
    assert torch.equal(stacked, expected)


@pytest.mark.parametrize(("length", "rows"), [(2, 21), (4, 10), (42, 1), (43, 1), (44, 0)])
def test_the_incomplete_last_row_is_left_out(store: TokenStore, length: int, rows: int) -> None:
    assert len(PackedRows(store, "train", length, segments=False)) == rows


def test_an_empty_split_has_no_rows(store: TokenStore) -> None:
    assert len(PackedRows(store, "val", 2, segments=True)) == 0


@pytest.mark.parametrize("segments", [False, True])
def test_every_token_of_a_row_is_maskable(store: TokenStore, segments: bool) -> None:
    row = PackedRows(store, "train", 8, segments)[1]
    assert row["maskable"].tolist() == [True] * 8
    assert row["maskable"].dtype == torch.bool


@pytest.mark.parametrize("length", [4, 5, 8, 21, 43])
def test_segments_tell_the_documents_of_a_row_apart(store: TokenStore, length: int) -> None:
    """Including a document that ends exactly with a row (8 and 16 of 43), and one that spans several rows."""
    rows = PackedRows(store, "train", length, segments=True)
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    for i in range(len(rows)):
        expected = document[i * length : (i + 1) * length]
        assert torch.equal(rows[i]["segment_ids"], expected - expected[0])


def test_a_document_that_ends_with_its_row_does_not_reach_into_the_next(store: TokenStore) -> None:
    rows = PackedRows(store, "train", 8, segments=True)
    assert rows[0]["segment_ids"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert rows[1]["segment_ids"].tolist() == [0] * 8
    assert rows[2]["segment_ids"].tolist() == [0, 1, 2, 2, 2, 2, 2, 2]


def test_a_separator_belongs_to_the_document_before_it(store: TokenStore) -> None:
    row = PackedRows(store, "train", 4, segments=True)[0]
    assert row["segment_ids"].tolist() == [0, 0, 0, 1]  # the first document is two tokens and its separator


def test_rows_come_without_segments_unless_asked_for(store: TokenStore) -> None:
    assert "segment_ids" not in PackedRows(store, "train", 4, segments=False)[0]


def test_rows_are_64_bit_integers(store: TokenStore) -> None:
    row = PackedRows(store, "train", 4, segments=True)[0]
    assert (row["input_ids"].dtype, row["segment_ids"].dtype) == (torch.int64, torch.int64)


def test_writing_into_a_row_does_not_reach_the_corpus(store: TokenStore) -> None:
    rows = PackedRows(store, "train", 4, segments=False)
    rows[0]["input_ids"].zero_()
    assert rows[0]["input_ids"].tolist() == [100, 101, 102, 103]
