"""What a store is made of."""

from dataclasses import dataclass
from typing import Any

from coda.data.encoders import Encoder
from coda.data.sources import Source
from coda.data.tokenizer import tokenizer_fingerprint

FORMAT = 2
SHARD_TOKENS = 1 << 26  # 256 MiB
RESERVED = ("tokenizer", "manifest.json", "plan.json")  # what a store holds beside its corpora


@dataclass
class Plan:
    """Everything that shapes a store. Pickled to the processes that write it.

    Attributes:
        sources: The corpora.
        encoder: How their documents become tokens.
        val_fraction: Share of the documents held out. A document's content decides, so copies stay on one side.
        deduplicate: Keep only the first of equal documents, over all corpora.
        shard_tokens: Tokens after which a shard ends, at the end of a document.

    Raises:
        ValueError: If two corpora have the same name, or one that a store uses itself.
    """

    sources: list[Source]
    encoder: Encoder
    val_fraction: float
    deduplicate: bool = False
    shard_tokens: int = SHARD_TOKENS

    def __post_init__(self) -> None:
        names = [source.corpus for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two of data.sources are called {name!r}; give one of them another name, as corpus")
            if name in RESERVED:
                raise ValueError(f"one of data.sources is called {name!r}, as a part of a store; name it with corpus")

    def fingerprint(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "format": FORMAT,
            "sources": {
                source.corpus: source.fingerprint() | {"max_tokens": source.max_tokens} for source in self.sources
            },
            "tokenizer": tokenizer_fingerprint(self.encoder.tokenizer),
            "encoder": self.encoder.fingerprint(),
            "val_fraction": self.val_fraction,
            # In order: which copy stays depends on it.
            "deduplicate": self.deduplicate and [source.corpus for source in self.sources],
        }

    @property
    def vocab_size(self) -> int:
        """Largest token id plus one."""
        return int(max(self.encoder.tokenizer.get_vocab().values())) + 1


def shard_name(number: int, piece: int) -> str:
    """Name of the ``piece``-th shard of a source's part ``number``."""
    return f"{number:05}-{piece:05}"
