"""From a row's events to answers: whole ones, and streams of server-sent events in OpenAI's shape."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, Literal

from coda.serving.engine import Engine, OverloadError
from coda.serving.errors import ApiError, failed
from coda.serving.metrics import Metrics
from coda.serving.protocol import AssistantMessage, ChatChoice, ChatCompletion, Completion, CompletionChoice, Usage
from coda.serving.requests import Asked
from coda.serving.rows import Draft, Ended, Event, Failed, Row, Text

KEEP_ALIVE = 15.0  # seconds without an event, after which proxies are shown that somebody is there
Kind = Literal["completion", "chat"]


class Events:
    """The events of one request's rows, handed from the engine's thread to the server's loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Event] = asyncio.Queue()
        self.left: dict[int, Row] = {}  # not finished

    def emit(self, event: Event) -> None:
        """Hand an event over; called in the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self.queue.put_nowait, event)

    def submit(self, asked: Asked) -> None:
        """Queue the rows. Raises ApiError if there is no place for them."""
        try:
            self.engine.submit(asked.rows)
        except OverloadError as error:
            headers = {"Retry-After": str(error.seconds)}
            raise ApiError(429, str(error), code="overloaded", headers=headers) from error
        self.left = {row.index: row for row in asked.rows}

    def close(self) -> None:
        """Cancel what is not finished: nobody waits for it any more."""
        if self.left:
            self.engine.cancel(list(self.left.values()))
            self.left = {}

    async def all(self) -> AsyncGenerator[Event | None, None]:
        """All events of the rows, None after a while without one.

        Raises:
            ApiError: If a row fails.
        """
        while self.left:
            try:
                event = await asyncio.wait_for(self.queue.get(), KEEP_ALIVE)
            except TimeoutError:
                yield None
                continue
            if isinstance(event, Ended | Failed):
                del self.left[event.row]
            if isinstance(event, Failed):
                raise ApiError(503, "the server is shutting down") if event.closing else failed()
            yield event


class Answer:
    """The answer to one request.

    Args:
        kind: Of completion or chat.
        model: Name of the model.
        asked: The rows.
        events: Of the rows, which are queued.
        metrics: Counts tokens and evaluations.
    """

    def __init__(self, kind: Kind, model: str, asked: Asked, events: Events, metrics: Metrics) -> None:
        self.kind, self.model, self.asked, self.events, self.metrics = kind, model, asked, events, metrics
        self.id = ("cmpl-" if kind == "completion" else "chatcmpl-") + secrets.token_hex(12)
        self.created = int(time.time())
        self.ends: dict[int, Ended] = {}

    async def whole(self) -> Completion | ChatCompletion:
        """Everything at once. Raises ApiError if a row fails."""
        texts = [""] * len(self.asked.rows)
        async with aclosing(self._watched()) as events:
            async for event in events:
                if isinstance(event, Text):
                    texts[event.row] += event.text
        head: dict[str, Any] = {"id": self.id, "created": self.created, "model": self.model, "usage": self._usage()}
        pairs = [(index, text, self.ends[index].reason) for index, text in enumerate(texts)]
        if self.kind == "completion":
            plain = [CompletionChoice(index=i, text=text, finish_reason=reason) for i, text, reason in pairs]
            return Completion(object="text_completion", choices=plain, **head)
        said = [
            ChatChoice(index=i, message=AssistantMessage(content=text), finish_reason=why) for i, text, why in pairs
        ]
        return ChatCompletion(object="chat.completion", choices=said, **head)

    async def stream(self, usage: bool) -> AsyncGenerator[str, None]:
        """Server-sent events; with ``usage``, the last chunk has it and no choices."""
        extra = {"usage": None} if usage else {}
        try:
            if self.kind == "chat":
                for row in self.asked.rows:
                    yield _sent(self._chunk([self._choice(row.index, "", first=True)], extra))
            async with aclosing(self._watched()) as events:
                async for event in events:
                    yield self._line(event, extra)
        except ApiError as error:
            yield _sent(error.body)
            return
        if usage:
            yield _sent(self._chunk([], {"usage": self._usage().model_dump()}))
        yield "data: [DONE]\n\n"

    def _line(self, event: Event | None, extra: dict[str, Any]) -> str:
        if isinstance(event, Text):
            return _sent(self._chunk([self._choice(event.row, event.text)], extra))
        if isinstance(event, Ended):
            return _sent(self._chunk([self._choice(event.row, "", event.reason)], extra))
        if isinstance(event, Draft):  # for a client that knows no drafts, a chunk without text
            draft = {**event._asdict(), "changes": [change._asdict() for change in event.changes]}
            del draft["row"]
            return "event: draft\n" + _sent(self._chunk([self._choice(event.row, "") | {"draft": draft}], extra))
        return ": still decoding\n\n"

    async def _watched(self) -> AsyncGenerator[Event | None, None]:
        async with aclosing(self.events.all()) as events:
            async for event in events:
                if isinstance(event, Ended):
                    self.ends[event.row] = event
                    self.metrics.tokens.inc(event.tokens)
                    self.metrics.evaluations.inc(event.evaluations)
                yield event
        self.metrics.prompt_tokens.inc(self.asked.prompt_tokens)

    def _usage(self) -> Usage:
        written = sum(end.tokens for end in self.ends.values())
        given = self.asked.prompt_tokens
        steps = sum(end.evaluations for end in self.ends.values())
        return Usage(
            prompt_tokens=given, completion_tokens=written, total_tokens=given + written, denoising_steps=steps
        )

    def _chunk(self, choices: list[dict[str, Any]], extra: dict[str, Any]) -> dict[str, Any]:
        name = "text_completion" if self.kind == "completion" else "chat.completion.chunk"
        head: dict[str, Any] = {"id": self.id, "object": name, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **extra}

    def _choice(self, index: int, text: str, reason: str | None = None, first: bool = False) -> dict[str, Any]:
        rest = {"logprobs": None, "finish_reason": reason}
        if self.kind == "completion":
            return {"index": index, "text": text, **rest}
        delta = {"role": "assistant", "content": ""} if first else {"content": text} if text else {}
        return {"index": index, "delta": delta, **rest}


def _sent(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
