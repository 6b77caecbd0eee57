"""The token store: prepared corpora, opened for reading.

A store is a folder with a ``manifest.json``, the ``tokenizer`` and one folder of shards per corpus (see
:mod:`coda.data.shards`). The manifest is written last: a store that has one is whole.
"""

import json
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from coda.data.plan import FORMAT
from coda.data.shards import SPLITS
from coda.data.staging import Location, check, open_location
from coda.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from coda.files import cache_key

MANIFEST = "manifest.json"
OPEN_FILES = 64  # per stream: each memory map holds a file descriptor, and its file's disk space if that is deleted
ATTEMPTS = 20  # to open a staged file before it is deleted again


class TokenStore:
    """A finished store.

    Args:
        folder: Local, or an fsspec URL such as ``gs://bucket/folder``, whose shards are staged to local disk.
        staging: Local folder for the shards of a remote store; None is ``staging`` in the cache.
        staging_bytes: How much of them to keep at a time; None keeps all.

    Attributes:
        manifest: What shaped the store, counts per corpus and split, and the shards with their checksums.

    Raises:
        ValueError: If the store is unfinished, or a shard is missing or cut short.
    """

    def __init__(self, folder: str | Path, staging: Path | None = None, staging_bytes: int | None = None) -> None:
        self.location: Location = open_location(str(folder), staging, staging_bytes)
        try:
            self.manifest: dict[str, Any] = json.loads(self.location.read(MANIFEST))
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder} is no prepared corpus: it has no {MANIFEST}; run (or run again) python -m coda.data.prepare"
            ) from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{folder}/{MANIFEST} is damaged ({error}); prepare the corpora again") from error
        if self.manifest.get("format") != FORMAT:
            version = self.manifest.get("format")
            raise ValueError(f"{folder} has format {version}, this version reads {FORMAT}; prepare the corpora again")
        self._check_sizes()

    def corpora(self) -> list[str]:
        """Names of the corpora."""
        return list(self.manifest["corpora"])

    def stream(self, corpus: str, split: str) -> "TokenStream":
        """The tokens of one corpus and split."""
        return TokenStream(self.location, corpus, split, self.manifest["corpora"][corpus]["shards"])

    def tokens(self, split: str) -> int:
        """Tokens of a split, over all corpora."""
        return sum(corpus["tokens"][split] for corpus in self.manifest["corpora"].values())

    def content(self) -> str:
        """Hash of all tokens, by the shards' checksums."""
        return cache_key([checksum for _, checksum, _ in self._files()])

    def load_tokenizer(self, path: str | None = None) -> PreTrainedTokenizerBase:
        """Load the tokenizer that the store was written with, or the same one from ``path``.

        Raises:
            ValueError: If that is another one.
        """
        expected = self.manifest["tokenizer"]
        path = path or str(self.location.folder("tokenizer", expected))
        tokenizer = load_tokenizer(path)
        if tokenizer_fingerprint(tokenizer) != expected:
            raise ValueError(
                f"data.prepared {self.location.root} was written with another tokenizer than {path}; set data.tokenizer to "
                "null to take its own, or prepare the corpora again"
            )
        return tokenizer

    @property
    def unigram_entropy(self) -> float:
        """Entropy of the corpus's token frequencies, in nats per token: what a model without context can reach."""
        return float(self.manifest["unigram_entropy"])

    def _files(self) -> list[tuple[str, str, int | None]]:
        """Path, checksum and, where the manifest tells it, size in bytes of every file."""
        return [
            (f"{corpus}/{shard['name']}.{ending}", value, _bytes(shard, ending))
            for corpus, description in self.manifest["corpora"].items()
            for shard in description["shards"]
            for ending, value in shard["checksums"].items()
            if ending != "counts.npy"
        ]

    def _check_sizes(self) -> None:
        sizes = self.location.sizes()
        for path, _, size in self._files():
            if path not in sizes:
                raise ValueError(f"{self.location.root}/{path} is missing; prepare the corpora again, or copy it anew")
            if size is not None and sizes[path] != size:
                raise ValueError(
                    f"{self.location.root}/{path} has {sizes[path]} bytes instead of {size}: it was cut short or "
                    "overwritten; prepare the corpora again, or copy it anew"
                )

    def verify(self) -> None:
        """Read every file and compare its checksum.

        Raises:
            ValueError: For the first one that differs.
        """
        total = sum(size or 0 for _, _, size in self._files())
        with tqdm(desc="Verifying", total=total, unit="B", unit_scale=True, disable=total < 1 << 30) as bar:
            for path, expected, size in self._files():
                check(self.location.local(path, expected), expected)
                bar.update(size or 0)


class TokenStream:
    """The documents of one corpus and split, end to end. Documents never cross shards; rows of tokens may.

    Attributes:
        tokens: N, how many there are.
        documents: How many documents.
    """

    def __init__(self, location: Location, corpus: str, split: str, shards: list[dict[str, Any]]) -> None:
        self.location = location
        self.corpus = corpus
        self.split = split
        self.shards = shards
        self.starts = np.cumsum([0, *(shard["tokens"][split] for shard in shards)])
        self.firsts = np.cumsum([0, *(shard["documents"][split] for shard in shards)])
        self.tokens, self.documents = int(self.starts[-1]), int(self.firsts[-1])
        self._map = lru_cache(OPEN_FILES)(self._open_map)
        self._table = lru_cache(OPEN_FILES)(self._open_table)
        self._ends = lru_cache(OPEN_FILES)(self._open_ends)

    def __reduce__(self) -> tuple[type["TokenStream"], tuple[Any, ...]]:
        # A pickled memory map is a copy of the file: reading processes open their own.
        return TokenStream, (self.location, self.corpus, self.split, self.shards)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens ``start`` to ``stop``, uint32; a view of the memory-mapped file where they lie in one."""
        parts = [self._map(shard)[first:last] for shard, first, last in self._spans(start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.uint32), *parts])

    def document_of(self, start: int, stop: int) -> np.ndarray:
        """To which document, counted over the stream, each of the tokens ``start`` to ``stop`` belongs, int64."""
        parts = []
        for shard, first, last in self._spans(start, stop):
            ends = self._ends(shard)
            begin, end = np.searchsorted(ends, [first, last - 1], side="right")
            sizes = np.diff(ends[begin:end].clip(max=last), prepend=first, append=last)
            parts.append(np.repeat(self.firsts[shard] + np.arange(begin, end + 1), sizes))
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def document(self, index: int) -> tuple[np.ndarray, int]:
        """Tokens of document ``index``, uint32, and how many of them, from the first, are a prompt."""
        shard = int(np.searchsorted(self.firsts, index, side="right")) - 1
        ends, number = self._ends(shard), index - int(self.firsts[shard])
        start = int(ends[number - 1]) if number else 0
        return self._map(shard)[start : int(ends[number])], int(self._table(shard)["prompt"][number])

    def lengths(self) -> np.ndarray:
        """Tokens of every document, int64."""
        parts = [self._table(shard)["tokens"] for shard in range(len(self.shards))]
        return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)

    def _spans(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The shards that hold the tokens ``start`` to ``stop``, and from where to where in each."""
        spans, shard = [], int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self.starts[shard + 1]))
            if end > start:
                spans.append((shard, start - int(self.starts[shard]), end - int(self.starts[shard])))
            start, shard = end, shard + 1
        return spans

    def _open(self, shard: int, ending: str, how: Callable[[Path], np.ndarray]) -> np.ndarray:
        record = self.shards[shard]
        for attempt in count(1):
            try:
                return how(self.location.local(f"{self.corpus}/{record['name']}.{ending}", record["checksums"][ending]))
            except FileNotFoundError:  # another process needed the room at this very moment
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError

    def _open_map(self, shard: int) -> np.ndarray:
        return self._open(shard, f"{self.split}.tokens", partial(np.memmap, dtype=np.uint32, mode="r"))

    def _open_table(self, shard: int) -> np.ndarray:
        table = self._open(shard, "documents.npy", np.load)
        return table[table["val"] == (self.split == "val")]

    def _open_ends(self, shard: int) -> np.ndarray:
        return self._table(shard)["tokens"].cumsum(dtype=np.int64)


def _bytes(shard: dict[str, Any], ending: str) -> int | None:
    split = ending.removesuffix(".tokens")
    return 4 * int(shard["tokens"][split]) if split in SPLITS else None
