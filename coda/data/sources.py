"""The interface of corpora: sources that can be read in parallel, part by part, and taken up again behind any record."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

PARTS = 1024  # at most, of one source
PART_BYTES = 4 << 20  # a part of small files
OnError = Literal["fail", "skip"]


class Message(NamedTuple):
    """One turn of a conversation. ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


Conversation = tuple[Message, ...]  # the last turn is the assistant's: what is to be learned
Document = str | Conversation


@dataclass(frozen=True)
class Skipped:
    """A record that holds no document.

    Attributes:
        reason: In a word or two; records are counted by it.
    """

    reason: str


class BadRecordError(ValueError):
    """A record that cannot be used; its source says whether that ends the reading.

    Args:
        reason: See :class:`Skipped`.
        message: What is wrong with which record of which file, and the way out.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Source(ABC):
    """A corpus of documents.

    Args:
        corpus: Name, in the mixture and on disk; None makes one from what is read.
        max_tokens: Read documents until this many tokens are taken; None reads all.
        weight: Share of the mixture, relative to the other weights; None shares by size, ``epochs`` times.
        epochs: How often the corpus is read in one pass over the mixture.
    """

    def __init__(
        self,
        corpus: str | None = None,
        max_tokens: int | None = None,
        weight: float | None = None,
        epochs: float = 1.0,
    ) -> None:
        kind = type(self).__name__
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"{kind}.max_tokens is {max_tokens}; take at least 1, or null for all")
        if weight is not None and not 0 < weight < math.inf:
            raise ValueError(
                f"{kind}.weight is {weight}; give a positive share, or leave the corpus out of the sources"
            )
        if not 0 < epochs < math.inf:
            raise ValueError(f"{kind}.epochs is {epochs}; read it a positive number of times, or leave it out")
        if weight is not None and epochs != 1.0:
            raise ValueError(f"{kind} has weight {weight} and epochs {epochs:g}; a weight leaves no choice: give one")
        if corpus is not None and corpus != file_name(corpus):
            raise ValueError(f"{kind}.corpus is {corpus!r}; it names a folder: use letters, digits, '.', '-' and '_'")
        self._corpus = corpus
        self.max_tokens = max_tokens
        self.weight = weight
        self.epochs = epochs

    @property
    def corpus(self) -> str:
        """What the corpus is called."""
        return self._corpus or file_name(self.default_name())

    @abstractmethod
    def default_name(self) -> str:
        """Name the corpus after what it reads."""

    @abstractmethod
    def parts(self) -> list[Any]:
        """Split the corpus into parts, JSON values, that can be read independently; always the same ones.

        Raises:
            ValueError: If there is nothing to read, naming the setting.
        """

    @abstractmethod
    def read(self, part: Any) -> Iterator[Document | Skipped]:
        """Yield one item per record of ``part``, always in the same order.

        Raises:
            ValueError: For a missing or malformed file; the message names it.
        """

    def fingerprint(self) -> dict[str, Any]:
        """Everything that shapes the documents, as JSON. Subclasses add to it."""
        return {"source": type(self).__name__}

    def documents(self) -> Iterator[Document]:
        """Yield all documents in order."""
        for part in self.parts():
            yield from (item for item in self.read(part) if not isinstance(item, Skipped))


class RecordSource(Source):
    """A source whose records become documents one by one.

    Args:
        on_error: What to do about a malformed record or one without the columns: ``fail``, or ``skip`` and count it. It
            is no part of the fingerprint, for what was read without an error is the same: a run that failed may skip on.
        **mixing: See :class:`Source`.
    """

    def __init__(self, on_error: OnError = "fail", **mixing: Any) -> None:
        super().__init__(**mixing)
        self.on_error = on_error

    @abstractmethod
    def records(self, part: Any) -> Iterator[tuple[Any, Callable[[], str]] | BadRecordError]:
        """Yield each record of ``part`` and a function that says where it stands, or what is wrong with it."""

    @abstractmethod
    def document(self, record: Any, where: Callable[[], str]) -> Document | Skipped:
        """Turn a record into a document. Raises BadRecordError, with the place ``where``, if it cannot be one."""

    def read(self, part: Any) -> Iterator[Document | Skipped]:
        """See :meth:`Source.read`."""
        for item in self.records(part):
            try:
                if isinstance(item, BadRecordError):
                    raise item
                yield self.document(*item)
            except BadRecordError as error:
                if self.on_error == "fail":
                    raise ValueError(f"{error}, or on_error to skip") from error
                yield Skipped(error.reason)


def require_columns(record: Any, columns: Iterable[str], where: Callable[[], str]) -> dict[str, Any]:
    """Return ``record`` if it is an object with these columns.

    Raises:
        BadRecordError: If it is not; the message lists what it has.
    """
    if not isinstance(record, dict):
        first = next(iter(columns))
        message = f"{where()} has no columns but a bare {type(record).__name__}; write objects with a {first!r}"
        raise BadRecordError("no object", message)
    for column in columns:
        if column not in record:
            message = f"{where()} has no column {column!r}; set the column to one of {list(record)}"
            raise BadRecordError("no column", message)
    return record


def require_text(value: Any, column: str, where: Callable[[], str]) -> str:
    """Return the text of a column, empty for None.

    Raises:
        BadRecordError: If it holds something else.
    """
    if not isinstance(value, str | None):
        kind = type(value).__name__
        message = f"{where()} has no text under {column!r} but a value of type {kind}; set the column to another one"
        raise BadRecordError("no text", message)
    # JSON can escape half a surrogate pair, which is no character and has no bytes.
    return (value or "").encode("utf-8", "replace").decode("utf-8")


def file_name(text: str) -> str:
    """Replace what does not belong into the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "corpus"


def group(sizes: list[int]) -> list[range]:
    """Group consecutive files of ``sizes`` bytes into at most ``PARTS`` parts, of ``PART_BYTES`` or more."""
    least = max(PART_BYTES, sum(sizes) // PARTS + 1)
    groups, start, taken = [], 0, 0
    for i, size in enumerate(sizes):
        taken += size
        if taken >= least or i == len(sizes) - 1:
            groups.append(range(start, i + 1))
            start, taken = i + 1, 0
    return groups


def reason(error: BaseException) -> str:
    """The first line of an error from a library, to be told as part of a sentence."""
    return str(error).strip().partition("\n")[0]
