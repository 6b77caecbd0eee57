"""A corpus in memory that says how often it was read."""

from collections.abc import Iterator
from typing import Any

from coda.data import Source
from coda.data.sources import Document, Skipped


class Texts(Source):
    """Documents from a list; ``reads`` counts how often someone began to read them."""

    def __init__(self, texts: list[str], **mixing: Any) -> None:
        super().__init__(**mixing)
        self.texts = texts
        self.reads = 0

    def default_name(self) -> str:
        return "texts"

    def parts(self) -> list[int]:
        return [0]

    def read(self, part: int) -> Iterator[Document | Skipped]:
        self.reads += 1
        yield from (text if text.strip() else Skipped("empty") for text in self.texts)

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"texts": self.texts}
