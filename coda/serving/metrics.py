"""What Prometheus reads: requests, their latency, and what the engine is doing."""

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("coda_requests", "Requests.", ["route", "status"], registry=registry)
        self.latency = Histogram(
            "coda_request_seconds", "From request to end of answer.", ["route"], buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "coda_batch_size", "Rows of each network evaluation.", buckets=ROWS, registry=registry
        )
        self.prompt_tokens = Counter("coda_prompt_tokens", "Tokens read, of finished requests.", registry=registry)
        self.tokens = Counter("coda_completion_tokens", "Tokens written.", registry=registry)
        self.evaluations = Counter(
            "coda_row_evaluations", "Network evaluations (NFE) that finished rows took.", registry=registry
        )
        self.cancelled = Counter("coda_cancelled_rows", "Rows given up, queued or running.", registry=registry)
        self.queued = Gauge("coda_queue_depth", "Rows that wait.", registry=registry)
        self.running = Gauge("coda_running_rows", "Rows being decoded.", registry=registry)

    def watch(self, queued: Callable[[], int], running: Callable[[], int]) -> None:
        """Read these when the metrics are read."""
        self.queued.set_function(queued)
        self.running.set_function(running)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return bytes(generate_latest(self.registry))


class Metered:
    """ASGI middleware that counts every request with its route and status, and times it to the end of its answer."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")  # not the path: strangers may ask for any
            self.metrics.requests.labels(route, status).inc()
            self.metrics.latency.labels(route).observe(time.perf_counter() - start)
