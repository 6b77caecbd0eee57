"""Shards: tokenised documents on disk, a few files each, written whole or not at all.

A shard NAME holds ``NAME.train.tokens`` and ``NAME.val.tokens`` (uint32, document after document), ``NAME.documents.npy``
(one record of ``DOCUMENT`` per document, in the order of reading, both splits together) and, until its corpus is
finished, ``NAME.counts.npy`` (how often each token occurs). ``NAME.json`` is written last: a shard without it was never
finished and does not count.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from coda.data.encoders import Encoded
from coda.files import checksum, new_file, write_json

SPLITS = ("train", "val")
DOCUMENT = np.dtype([("hash", "<u8", 2), ("tokens", "<u4"), ("prompt", "<u4"), ("val", "?")])


@dataclass
class Shard:
    """What ``NAME.json`` says.

    Attributes:
        name: NAME.
        part: Index of the source's part that it comes from.
        records: How many records of that part were read by its end.
        last: Whether the part ends with it.
        skipped: How many records were skipped or changed, by reason.
        tokens: Tokens per split.
        documents: Documents per split.
        checksums: CRC-32 by the ending of the file's name.
    """

    name: str
    part: int
    records: int
    last: bool
    skipped: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)


@dataclass
class ShardWriter:
    """Collects the documents of one shard in memory and writes them at once.

    Attributes:
        vocab_size: Largest token id plus one.
        tokens: Collected tokens, both splits.
        skipped: Counts by reason.
    """

    vocab_size: int
    tokens: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    _rows: dict[str, list[np.ndarray]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    _documents: list[tuple[tuple[int, int], int, int, bool]] = field(default_factory=list)

    def add(self, encoded: Encoded, digest: bytes, val: bool) -> None:
        """Take in a document, of which ``digest`` has 16 bytes."""
        self._rows["val" if val else "train"].append(encoded.tokens)
        halves = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"))
        self._documents.append((halves, len(encoded.tokens), encoded.prompt, val))
        self.tokens += len(encoded.tokens)

    def write(self, folder: Path, shard: Shard) -> None:
        """Write the shard's files and fill in what ``shard`` lacks."""
        tokens = {split: np.concatenate([np.zeros(0, np.uint32), *self._rows[split]]) for split in SPLITS}
        shard.skipped = dict(self.skipped)
        write_shard(folder, shard, tokens, np.array(self._documents, dtype=DOCUMENT), self.vocab_size)


def write_shard(
    folder: Path, shard: Shard, tokens: dict[str, np.ndarray], documents: np.ndarray, vocab_size: int
) -> None:
    """Write a shard's files, the record of them last, and fill in counts and checksums of ``shard``."""
    counts = sum(np.bincount(tokens[split], minlength=vocab_size) for split in SPLITS)
    files: dict[str, np.ndarray] = {f"{split}.tokens": tokens[split] for split in SPLITS}
    files |= {"documents.npy": documents, "counts.npy": np.asarray(counts, dtype=np.int64)}
    for ending, array in files.items():
        path = folder / f"{shard.name}.{ending}"
        with new_file(path) as file:
            if ending.endswith(".npy"):
                np.save(file, array)
            else:
                file.write(array.data)
        shard.checksums[ending] = checksum(path)
    held_out = int(documents["val"].sum())
    shard.tokens = {split: len(tokens[split]) for split in SPLITS}
    shard.documents = {"train": len(documents) - held_out, "val": held_out}
    write_json(folder / f"{shard.name}.json", asdict(shard))


def read_shard(folder: Path, name: str) -> Shard | None:
    """What is recorded of shard ``name``; None if it is not finished."""
    path = folder / f"{name}.json"
    return Shard(**json.loads(path.read_text())) if path.is_file() else None


def keep_documents(folder: Path, shard: Shard, keep: np.ndarray, vocab_size: int) -> Shard:
    """Write a copy of ``shard`` with the documents where ``keep``, bool [N], is True; the original stays."""
    name = f"{shard.name}-kept"
    before = read_shard(folder, name)  # by a run that was killed
    if before is not None and sum(before.documents.values()) == keep.sum():
        return before
    documents = np.load(folder / f"{shard.name}.documents.npy")
    tokens = {}
    for split in SPLITS:
        chosen = documents["val"] == (split == "val")
        mask = np.repeat(keep[chosen], documents["tokens"][chosen])
        tokens[split] = np.fromfile(folder / f"{shard.name}.{split}.tokens", dtype=np.uint32)[mask]
    kept = replace(shard, name=name, checksums={})
    write_shard(folder, kept, tokens, documents[keep], vocab_size)
    return kept
