"""The engine: a bounded queue, and one thread that decodes its rows in batches."""

import logging
from collections.abc import Sequence
from threading import Condition, Thread
from time import monotonic

from coda.model import CoDALanguageModel
from coda.serving.batch import Batch
from coda.serving.limits import Limits
from coda.serving.metrics import Metrics
from coda.serving.rows import Failed, Row, take
from coda.serving.text import Detokenizer

logger = logging.getLogger("uvicorn.error")
BATCHES = 2  # decoded in turn, step by step: a short request need not wait for the end of a long one


class OverloadError(Exception):
    """The queue is full; ``seconds`` is when to try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {seconds} s")
        self.seconds = seconds


class Engine:
    """Decodes rows from a queue; those with the same settings share batches.

    Args:
        model: In evaluation mode, on its device.
        detokenizer: Of the model's tokenizer, used by the engine's thread alone.
        metrics: Counts what is decoded.
        limits: Of batches, of the queue and of waiting.
    """

    def __init__(
        self, model: CoDALanguageModel, detokenizer: Detokenizer, metrics: Metrics, limits: Limits | None = None
    ) -> None:
        self.model, self.detokenizer, self.metrics = model, detokenizer, metrics
        self.limits = limits or Limits()
        self._queue: list[Row] = []
        self._batches: list[Batch] = []
        self._changed = Condition()
        self._closing = False
        self._thread = Thread(target=self._work, name="decoding", daemon=True)
        metrics.watch(lambda: len(self._queue), lambda: sum(len(batch.under_way) for batch in self._batches))

    def start(self) -> None:
        """Begin to decode."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether rows are decoded."""
        return self._thread.is_alive() and not self._closing

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue all of ``rows``, or none. Raises OverloadError if there is no place for them."""
        with self._changed:
            if self._closing:
                raise OverloadError(1)
            if len(self._queue) + len(rows) > self.limits.max_queue:
                raise OverloadError(1 + len(self._queue) // self.limits.max_batch_size)
            self._queue += rows
            self._changed.notify()

    def cancel(self, rows: Sequence[Row]) -> None:
        """Stop computing ``rows`` at the next step; those in the queue leave it at once."""
        with self._changed:
            for row in rows:
                row.cancelled = True
            self._queue = [row for row in self._queue if not row.cancelled]
        self.metrics.cancelled.inc(len(rows))

    def close(self) -> None:
        """Give up what is not finished, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while self._wait():
            self._admit()
            for batch in self._batches:
                self._advance(batch)
            self._batches = [batch for batch in self._batches if batch.under_way]
        self._fail([*self._queue, *(row for batch in self._batches for row in batch.rows)], closing=True)
        self._queue, self._batches = [], []

    def _wait(self) -> bool:
        """Wait until there is something to do; return False when it is time to end."""
        with self._changed:
            while not self._closing and not self._batches:
                if not self._queue:
                    self._changed.wait()
                elif (patience := self._patience(self.limits.max_batch_size)) > 0:
                    self._changed.wait(patience)
                else:
                    break
            return not self._closing

    def _patience(self, room: int) -> float:
        """How long the first row in the queue may still wait for others, in seconds."""
        if len(take(self._queue, room)) == room:
            return 0.0
        return self._queue[0].queued + self.limits.max_wait_ms / 1000 - monotonic()

    def _admit(self) -> None:
        """Begin a batch if there are rows and room for it."""
        room = self.limits.max_batch_size - sum(len(batch.under_way) for batch in self._batches)
        with self._changed:
            if not self._queue or room < 1 or len(self._batches) >= BATCHES or self._patience(room) > 0:
                return
            rows = take(self._queue, room)
            self._queue = [row for row in self._queue if row not in rows]
        try:
            self._batches.append(Batch(self.model, self.detokenizer, rows))
        except Exception:
            logger.exception("a batch of %d rows cannot be decoded", len(rows))
            self._fail(rows)

    def _advance(self, batch: Batch) -> None:
        try:
            size = batch.step()
        except Exception:  # whatever it is, other batches go on
            logger.exception("decoding a batch of %d rows failed", len(batch.under_way))
            self._fail(batch.rows)
            batch.under_way.clear()
            return
        if size:
            self.metrics.batch_size.observe(size)

    @staticmethod
    def _fail(rows: Sequence[Row], closing: bool = False) -> None:
        for row in rows:
            row.emit(Failed(row.index, closing))
