"""A row: one gap to fill, and what is reported of it while it is being decoded."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple

from coda.model import CoDAGenerationConfig
from coda.serving.text import FinishReason


class Text(NamedTuple):
    """Text that will not change any more, behind what was sent before."""

    row: int
    text: str


class Change(NamedTuple):
    """A token of the gap that was committed, or, without text, made a mask again."""

    position: int
    text: str | None


class Draft(NamedTuple):
    """The gap after a denoising step; step 0 is before the first."""

    row: int
    step: int
    length: int
    masked: int
    changes: list[Change]


class Ended(NamedTuple):
    """The row is finished."""

    row: int
    reason: FinishReason
    tokens: int
    evaluations: int


class Failed(NamedTuple):
    """The row will not be finished: through a bug, or because the server is shutting down."""

    row: int
    closing: bool


Event = Text | Draft | Ended | Failed


@dataclass(eq=False)
class Row:
    """A canvas with one gap.

    Attributes:
        index: Number of the choice that it is.
        ids: Token ids of the canvas, masks in the gap.
        gap: Where the gap is.
        seed: Of its decoding.
        config: Settings of its decoding, without the seed.
        key: Equal for rows that may be decoded in one batch.
        emit: Receives the row's events, in the engine's thread.
        stops: Strings before which the text ends.
        streams: Whether text is reported as it becomes final, instead of at the end.
        drafts: Whether the changes of every denoising step are reported.
        cancelled: Set, from any thread, when nobody waits for the row any more.
        queued: When it joined the queue, in seconds.
    """

    index: int
    ids: list[int]
    gap: slice
    seed: int
    config: CoDAGenerationConfig
    key: tuple[Any, ...]
    emit: Callable[[Event], None]
    stops: tuple[str, ...] = ()
    streams: bool = False
    drafts: bool = False
    cancelled: bool = False
    queued: float = field(default_factory=monotonic)

    @property
    def watched(self) -> bool:
        """Whether something is to be read of it before it is finished."""
        return self.streams or self.drafts or bool(self.stops)


def take(queue: list[Row], room: int) -> list[Row]:
    """The first row of ``queue`` and those behind it that may share its batch, at most ``room``; removes nothing."""
    key = queue[0].key
    return list(itertools.islice((row for row in queue if row.key == key), room))
