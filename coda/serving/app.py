"""The application: its routes, and the engine behind them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer

from coda import __version__
from coda.serving.answers import Answer, Events, Kind
from coda.serving.engine import Engine
from coda.serving.errors import ApiError, handle_errors
from coda.serving.guard import Guard
from coda.serving.metrics import Metered, Metrics
from coda.serving.protocol import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Error,
    Generation,
    ModelCard,
    ModelList,
)
from coda.serving.requests import Asked, Reader

PAGE = Path(__file__).parent / "page"
FILES = ("app.js", "style.css", "icon.svg")
CLOSED = 499  # the client has gone; nobody reads this but the metrics
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": text}
    for status, text in {
        400: "The request cannot be decoded; the message says why.",
        401: "No key, or a wrong one.",
        404: "There is no such model.",
        413: "The body is too large.",
        429: "The queue is full; Retry-After says when to try again.",
        500: "A bug.",
        503: "The server is shutting down.",
    }.items()
}


class _Stream(StreamingResponse):
    """Server-sent events; however it ends, nothing is decoded for it afterwards."""

    def __init__(self, lines: AsyncIterator[str], events: Events) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.events = events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.events.close()


def build_app(reader: Reader, engine: Engine, metrics: Metrics, keys: list[bytes], max_body: int) -> FastAPI:
    """Put the server together; the engine runs as long as the application does.

    Args:
        reader: Reads requests.
        engine: Decodes them.
        metrics: Of both.
        keys: Digests of the keys that open ``/v1/``; none asks for no key.
        max_body: Bytes that a body may have.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="CoDA",
        version=__version__,
        description="OpenAI's protocol over a diffusion language model.",
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from elsewhere; /openapi.json is there
        redoc_url=None,
    )
    app.state.engine = engine
    handle_errors(app)
    app.include_router(_openai(reader, engine, metrics, bool(keys)))
    app.include_router(_operation(engine, metrics))
    app.include_router(_page())
    app.add_middleware(Guard, keys=keys, max_body=max_body)
    app.add_middleware(Metered, metrics=metrics)
    return app


def _openai(reader: Reader, engine: Engine, metrics: Metrics, keyed: bool) -> APIRouter:
    """What OpenAI's clients call."""
    secured = [Depends(HTTPBearer(auto_error=False))] if keyed else []  # says so in the schema; Guard looks at keys
    router = APIRouter(prefix="/v1", dependencies=secured, responses={401: ERRORS[401]})
    card = ModelCard(
        id=reader.name,
        created=int(time.time()),
        max_model_len=reader.positions,
        chat=reader.encoder.chats,
        sampler=reader.defaults,
    )

    async def answer(kind: Kind, http: Request, request: Generation, read: Callable[..., Asked]) -> Any:
        events = Events(engine)
        asked = await asyncio.to_thread(read, request, events.emit)
        events.submit(asked)
        made = Answer(kind, reader.name, asked, events, metrics)
        if request.stream:
            options = request.stream_options
            lines = made.stream(bool(options and options.include_usage))
            return _Stream(lines, events)
        try:
            return await _unless_closed(http, made.whole())
        finally:
            events.close()

    event = {"type": "object", "properties": {"event": {"enum": ["message", "draft"]}, "data": {"type": "string"}}}
    streamed = {200: {"content": {"text/event-stream": {"schema": event}}}}
    options: dict[str, Any] = {"responses": {**ERRORS, **streamed}}

    @router.post("/completions", response_model=Completion, **options)
    async def completions(request: CompletionRequest, http: Request) -> Any:
        """Continue a prompt, or fill the gap between a prompt and a suffix."""
        return await answer("completion", http, request, reader.completion)

    @router.post("/chat/completions", response_model=ChatCompletion, **options)
    async def chat(request: ChatRequest, http: Request) -> Any:
        """Answer a conversation."""
        return await answer("chat", http, request, reader.chat)

    @router.get("/models")
    async def models() -> ModelList:
        """The model that is served, in a list."""
        return ModelList(data=[card])

    @router.get("/models/{name:path}", responses={404: ERRORS[404]})
    async def model(name: str) -> ModelCard:
        """The model that is served."""
        if name != reader.name:
            raise ApiError(404, f"there is no model {name!r}; this server has {reader.name!r}", code="model_not_found")
        return card

    return router


def _operation(engine: Engine, metrics: Metrics) -> APIRouter:
    """What those ask who run the server."""
    router = APIRouter()

    @router.get("/health", responses={503: {"description": "It does not decode."}})
    async def health() -> JSONResponse:
        """Whether the engine decodes."""
        return JSONResponse({"status": "ok" if engine.alive else "down"}, 200 if engine.alive else 503)

    @router.get("/metrics", response_class=Response)
    async def read_metrics() -> Response:
        """Prometheus' text format."""
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _page() -> APIRouter:
    """The page that shows denoising."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @router.get("/page/{name}")
    async def file(name: str) -> FileResponse:
        if name not in FILES:
            raise ApiError(404, f"there is no file {name!r}")
        return FileResponse(PAGE / name)

    return router


async def _unless_closed(http: Request, work: Any) -> Any:
    """The result of ``work``, which is given up when the client closes the connection."""
    task = asyncio.ensure_future(work)
    closed = asyncio.ensure_future(_closed(http))
    try:
        await asyncio.wait({task, closed}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else Response(status_code=CLOSED)
    finally:
        for each in (task, closed):
            each.cancel()
        await asyncio.gather(task, closed, return_exceptions=True)


async def _closed(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


__all__ = ["build_app"]
