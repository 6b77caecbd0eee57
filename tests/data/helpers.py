"""What the tests of preparing share: opening a store in one line, and all that is in it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from coda.data.encoders import TextEncoder
from coda.data.ingest import prepare
from coda.data.plan import Plan
from coda.data.sources import Source
from coda.data.store import TokenStore
from coda.data.tokenizer import separator_id


def plan_of(
    sources: list[Source], tokenizer: PreTrainedTokenizerBase, val_fraction: float = 0.0, **options: Any
) -> Plan:
    """A plan of text corpora."""
    return Plan(sources, TextEncoder(tokenizer), val_fraction, **options)


def prepared(
    sources: list[Source],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    val_fraction: float = 0.0,
    processes: int = 1,
    **options: Any,
) -> TokenStore:
    """Prepare text corpora in ``folder``."""
    return prepare(plan_of(sources, tokenizer, val_fraction, **options), folder, processes)


def documents_of(store: TokenStore, split: str, corpus: str | None = None) -> list[list[int]]:
    """Token ids of every document of a split, in order: of one corpus, or of all."""
    documents = []
    for name in store.corpora() if corpus is None else [corpus]:
        stream = store.stream(name, split)
        parts = np.split(stream.read(0, stream.tokens), stream.lengths().cumsum())
        assert len(parts.pop()) == 0
        assert len(parts) == stream.documents
        documents += [part.tolist() for part in parts]
    return documents


def texts_of(store: TokenStore, split: str, tokenizer: PreTrainedTokenizerBase, corpus: str | None = None) -> list[str]:
    """The same as text. Every document must end with the separator, which is cut off."""
    documents = documents_of(store, split, corpus)
    assert all(document[-1] == separator_id(tokenizer) for document in documents)
    return [tokenizer.decode(document[:-1]) for document in documents]


def content(store: TokenStore) -> dict[str, Any]:
    """All of a store that a reader can see, shards aside."""
    described = {
        name: {key: corpus[key] for key in ("tokens", "documents", "skipped")}
        for name, corpus in store.manifest["corpora"].items()
    }
    tokens = {
        (name, split): store.stream(name, split).read(0, store.stream(name, split).tokens).tolist()
        for name in store.corpora()
        for split in ("train", "val")
    }
    lengths = {(name, split): store.stream(name, split).lengths().tolist() for name, split in tokens}
    return {"corpora": described, "tokens": tokens, "lengths": lengths, "entropy": store.unigram_entropy}


def write_jsonl(path: Path, texts: Iterable[str]) -> str:
    """Write one record per text; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "code": f"{text}."}) + "\n" for text in texts))
    return str(path)
