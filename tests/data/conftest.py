"""A corpus in memory that says how often it was read."""

from collections.abc import Iterator
from typing import Any

from coda.data import TextSource


class Texts(TextSource):
    """Documents from a list; ``reads`` counts how often someone began to read them."""

    def __init__(self, texts: list[str], max_tokens: int | None = None) -> None:
        super().__init__(max_tokens)
        self.texts = texts
        self.reads = 0

    def documents(self) -> Iterator[str]:
        self.reads += 1
        yield from self.texts

    def fingerprint(self) -> dict[str, Any]:
        return {"source": "Texts", "texts": self.texts}
