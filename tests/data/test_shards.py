"""Shards: what is written, and what is left of a shard that loses documents."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from coda.data.encoders import Encoded
from coda.data.shards import DOCUMENT, Shard, ShardWriter, keep_documents, read_shard
from coda.files import checksum

VOCABULARY = 50


def encoded(length: int, seed: int, prompt: int = 0) -> Encoded:
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.uint32)
    return Encoded(tokens, prompt)


@pytest.fixture
def documents() -> list[tuple[Encoded, bool]]:
    """Twelve documents, every third held out."""
    return [(encoded(1 + i * 5 % 7, i, prompt=i % 2), i % 3 == 0) for i in range(12)]


@pytest.fixture
def shard(documents: list[tuple[Encoded, bool]], tmp_path: Path) -> Shard:
    writer = ShardWriter(VOCABULARY)
    for i, (document, val) in enumerate(documents):
        writer.add(document, bytes([i]) * 16, val)
    writer.skipped.update({"empty": 3})
    shard = Shard("00004-00002", part=4, records=15, last=False)
    writer.write(tmp_path, shard)
    return shard


def expected_tokens(documents: list[tuple[Encoded, bool]], val: bool) -> list[int]:
    return [token for document, held_out in documents if held_out == val for token in document.tokens.tolist()]


def check_files(folder: Path, shard: Shard, documents: list[tuple[Encoded, bool]]) -> None:
    """The files of ``shard`` must hold just these documents."""
    for split, val in (("train", False), ("val", True)):
        tokens = np.fromfile(folder / f"{shard.name}.{split}.tokens", dtype=np.uint32).tolist()
        assert tokens == expected_tokens(documents, val)
        assert shard.tokens[split] == len(tokens)
        assert shard.documents[split] == sum(held_out == val for _, held_out in documents)
    table = np.load(folder / f"{shard.name}.documents.npy")
    assert table.dtype == DOCUMENT
    assert table["tokens"].tolist() == [len(document.tokens) for document, _ in documents]
    assert table["prompt"].tolist() == [document.prompt for document, _ in documents]
    assert table["val"].tolist() == [held_out for _, held_out in documents]
    counts = np.load(folder / f"{shard.name}.counts.npy")
    assert counts.shape == (VOCABULARY,)
    tokens = Counter(expected_tokens(documents, False) + expected_tokens(documents, True))
    assert {int(token): int(counts[token]) for token in counts.nonzero()[0]} == tokens
    for ending, value in shard.checksums.items():
        assert checksum(folder / f"{shard.name}.{ending}") == value
    assert read_shard(folder, shard.name) == shard


def test_a_shard_holds_its_documents_in_order(
    shard: Shard, documents: list[tuple[Encoded, bool]], tmp_path: Path
) -> None:
    check_files(tmp_path, shard, documents)
    assert (shard.part, shard.records, shard.last, shard.skipped) == (4, 15, False, {"empty": 3})


def test_a_digest_is_kept_whole(shard: Shard, tmp_path: Path) -> None:
    hashes = np.load(tmp_path / f"{shard.name}.documents.npy")["hash"]
    assert hashes.shape == (12, 2)
    assert hashes.astype("<u8").tobytes() == b"".join(bytes([i]) * 16 for i in range(12))


def test_tokens_are_written_little_endian_so_another_machine_reads_them(tmp_path: Path) -> None:
    writer = ShardWriter(70_000)
    writer.add(Encoded(np.array([1, 66_051], dtype=np.uint32)), bytes(16), False)
    writer.write(tmp_path, Shard("a", 0, 1, True))
    assert (tmp_path / "a.train.tokens").read_bytes() == bytes([1, 0, 0, 0, 3, 2, 1, 0])


def test_a_shard_of_nothing_is_written_and_read(tmp_path: Path) -> None:
    shard = Shard("00000-00000", 0, 2, True)
    ShardWriter(VOCABULARY).write(tmp_path, shard)
    check_files(tmp_path, shard, [])


@pytest.mark.parametrize("kept", [[0], [1], [11], [0, 3, 6, 9], [1, 2, 4], range(1, 12), []], ids=str)
def test_the_documents_that_stay_stay_as_they_are(
    shard: Shard, documents: list[tuple[Encoded, bool]], tmp_path: Path, kept: list[int]
) -> None:
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    keep = np.isin(np.arange(12), list(kept))
    copy = keep_documents(tmp_path, shard, keep, VOCABULARY)
    check_files(tmp_path, copy, [documents[i] for i in kept])
    assert {path: path.read_bytes() for path in before} == before
    assert copy.name != shard.name


def test_a_copy_that_another_run_has_finished_is_not_written_again(shard: Shard, tmp_path: Path) -> None:
    first, other = (np.arange(12) < count for count in (5, 6))
    record = tmp_path / f"{keep_documents(tmp_path, shard, first, VOCABULARY).name}.json"
    before = record.stat().st_ino
    keep_documents(tmp_path, shard, first, VOCABULARY)
    assert record.stat().st_ino == before
    assert keep_documents(tmp_path, shard, other, VOCABULARY).documents == {"train": 4, "val": 2}
    assert record.stat().st_ino != before


def test_a_shard_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert read_shard(tmp_path / "nowhere", "00000-00000") is None


def test_the_record_is_written_last(
    documents: list[tuple[Encoded, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def write_json(path: Path, value: dict) -> None:
        order.extend(sorted(path.name for path in tmp_path.iterdir()))
        assert set(json.loads(json.dumps(value))["checksums"]) == {name.removeprefix("a.") for name in order}

    monkeypatch.setattr("coda.data.shards.write_json", write_json)
    writer = ShardWriter(VOCABULARY)
    for document, val in documents:
        writer.add(document, bytes(16), val)
    writer.write(tmp_path, Shard("a", 0, 12, True))
    assert order == ["a.counts.npy", "a.documents.npy", "a.train.tokens", "a.val.tokens"]
