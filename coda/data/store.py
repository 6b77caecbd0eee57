"""The token store: a corpus tokenised once, as flat memory-mapped files.

A store is a folder with, for each split, ``SPLIT.tokens`` (uint32, every document followed by a separator) and
``SPLIT.ends.npy`` (int64, where each document ends), and a ``manifest.json``. It is written beside its final name and
renamed when complete, so a store that exists is whole.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from coda.data.sources import TextSource
from coda.data.tokenizer import separator_id, tokenizer_fingerprint
from coda.files import cache_key, new_folder

FORMAT = 1
SPLITS = ("train", "val")
DOCUMENTS_PER_BATCH = 256  # the tokenizer's threads share a batch


class TokenStore:
    """A finished store, opened for reading.

    Attributes:
        manifest: Counts per split, the unigram entropy and the tokenizer's fingerprint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        self._open: dict[str, np.ndarray] = {}

    def tokens(self, split: str) -> np.ndarray:
        """All tokens of a split, uint32 [N], memory-mapped."""
        name = f"{split}.tokens"
        if name not in self._open:
            # An empty file cannot be mapped.
            empty = not (self.folder / name).stat().st_size
            self._open[name] = np.zeros(0, np.uint32) if empty else np.memmap(self.folder / name, np.uint32, mode="r")
        return self._open[name]

    def ends(self, split: str) -> np.ndarray:
        """For each document of a split the index behind its last token (its separator), int64, memory-mapped."""
        name = f"{split}.ends.npy"
        if name not in self._open:
            self._open[name] = np.load(self.folder / name, mmap_mode="r")
        return self._open[name]

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path]]:
        # A pickled memory map is a copy of the file: reading processes open their own.
        return TokenStore, (self.folder,)

    @property
    def unigram_entropy(self) -> float:
        """Entropy of the corpus's token frequencies, in nats per token: what a model without context can reach."""
        return float(self.manifest["unigram_entropy"])


def open_store(
    sources: list[TextSource], tokenizer: PreTrainedTokenizerBase, val_fraction: float, cache: Path
) -> TokenStore:
    """Open the store of these sources, or write it first if it is not cached.

    Args:
        sources: Corpora, read one after the other.
        tokenizer: Applied to raw text, special tokens included: a literal ``<|mask|>`` in a text stays text.
        val_fraction: Share of the documents held out. A document's content decides, so copies stay on one side.
        cache: Folder of all stores.

    Raises:
        ValueError: If the sources hold no text.
    """
    fingerprints = [source.fingerprint() | {"max_tokens": source.max_tokens} for source in sources]
    key = cache_key(FORMAT, fingerprints, tokenizer_fingerprint(tokenizer), val_fraction)
    folder = cache / "corpora" / key
    if not folder.is_dir():
        with new_folder(folder) as unfinished:
            _write(unfinished, sources, tokenizer, val_fraction)
    return TokenStore(folder)


def _write(folder: Path, sources: list[TextSource], tokenizer: PreTrainedTokenizerBase, val_fraction: float) -> None:
    ends = {split: array("q") for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=np.int64)
    files = {split: (folder / f"{split}.tokens").open("wb") for split in SPLITS}
    try:
        for text, tokens in _tokenised(sources, tokenizer):
            split = "val" if _position(text) < val_fraction else "train"
            files[split].write(tokens.tobytes())
            sizes[split] += len(tokens)
            ends[split].append(sizes[split])
            counts += np.bincount(tokens, minlength=len(counts))
    finally:
        for file in files.values():
            file.close()
    if not counts.any():
        raise ValueError(f"data.sources hold no text: {[source.fingerprint() for source in sources]}")
    for split in SPLITS:
        np.save(folder / f"{split}.ends.npy", np.frombuffer(ends[split], dtype=np.int64))
    frequency = counts[counts > 0] / counts.sum()
    manifest = {
        "format": FORMAT,
        "tokens": sizes,
        "documents": {split: len(ends[split]) for split in SPLITS},
        "unigram_entropy": float(-(frequency * np.log(frequency)).sum()),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "sources": [source.fingerprint() for source in sources],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, default=str))


def _tokenised(sources: list[TextSource], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each document with its tokens and a separator, uint32."""
    separator = separator_id(tokenizer)
    with tqdm(desc="Tokenising", unit=" tokens", unit_scale=True) as progress:
        for source in sources:
            taken = 0
            for texts in _batches(text for text in source.documents() if text.strip()):
                rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
                for text, row in zip(texts, rows, strict=True):
                    if source.max_tokens is not None and taken >= source.max_tokens:
                        break
                    taken += len(row) + 1
                    progress.update(len(row) + 1)
                    yield text, np.array([*row, separator], dtype=np.uint32)
                if source.max_tokens is not None and taken >= source.max_tokens:
                    break


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, DOCUMENTS_PER_BATCH)):
        yield batch


def _position(text: str) -> float:
    """A number in [0, 1) that the text alone decides."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=6).digest(), "big") / 2**48
