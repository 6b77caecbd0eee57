"""How documents become tokens."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from coda.data.sources import Document, Skipped
from coda.data.tokenizer import separator_id


class Encoded(NamedTuple):
    """A document's tokens.

    Attributes:
        tokens: uint32 [N].
        prompt: How many of them, from the first, are a prompt that is given and not learned.
        note: What was done to it, to be counted; empty for nothing.
    """

    tokens: np.ndarray
    prompt: int = 0
    note: str = ""


class Encoder(ABC):
    """Turns documents into tokens.

    Args:
        tokenizer: Applied to raw text, special tokens included: a literal ``<|mask|>`` in a text stays text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @abstractmethod
    def __call__(self, documents: list[Document]) -> list[Encoded | Skipped]:
        """Encode a batch, in order."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Everything besides the tokenizer that shapes the tokens, as JSON."""

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of raw texts."""
        if not texts:
            return []
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]


class TextEncoder(Encoder):
    """A text is followed by a separator."""

    def __call__(self, documents: list[Document]) -> list[Encoded | Skipped]:
        """See :class:`Encoder`."""
        separator = separator_id(self.tokenizer)
        texts = [str(document) for document in documents]
        return [Encoded(np.array([*row, separator], dtype=np.uint32)) for row in self.ids(texts)]

    def fingerprint(self) -> dict[str, Any]:
        """See :class:`Encoder`."""
        return {"encoder": "TextEncoder"}
