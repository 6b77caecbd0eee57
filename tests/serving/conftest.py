"""What the tests of the server share: a tiny model with a chat template, behind a real server on the loopback."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from openai import OpenAI
from transformers import PreTrainedTokenizerFast

from coda.data.chat import TEMPLATE
from coda.data.tokenizer import train_tokenizer
from coda.export import export
from coda.generate import build_canvas, text_of
from coda.model import CoDALanguageModel, ScratchBackbone
from coda.serve import build
from coda.serving.limits import Limits

POSITIONS = 160


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights large enough for varied predictions."""
    tokenizer = train_tokenizer(['def f(x):\n    return x + 1\n\n\nuser\nassistant\n"é€"'] * 3, 300)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "max_position_embeddings": POSITIONS}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.3}
    path = tmp_path_factory.mktemp("served") / "tiny-coder"
    export(ScratchBackbone(**sizes | heads).build(tokenizer).eval(), tokenizer, path)
    return str(path)


@dataclass
class Served:
    """A server that runs in this process, and its insides."""

    port: int
    app: Any

    @property
    def model(self) -> CoDALanguageModel:
        model: CoDALanguageModel = self.app.state.engine.model
        return model

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.app.state.engine.detokenizer.tokenizer

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=60, **options)

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, sent, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def metric(self, name: str, **labels: str) -> float:
        metrics = self.app.state.engine.metrics
        return metrics.registry.get_sample_value(name, labels) or 0.0

    def alone(self, prompt: str, suffix: str = "", tokens: int = 8, seed: int = 0, **settings: Any) -> str:
        """What ``python -m coda.generate`` writes into the gap."""
        ids, gap = build_canvas(self.tokenizer, prompt, suffix, tokens)
        settings = {"temperature": 0.1, "top_p": 0.9, "alg": "entropy", **settings}
        sequence = self.model.diffusion_generate(ids, max_new_tokens=0, seed=seed, **settings)[0]
        return text_of(self.tokenizer, sequence[gap])


Serve = Callable[..., Any]


@pytest.fixture(scope="session")
def serve(served_folder: str) -> Serve:
    """Starts a server and ends it with the ``with`` block."""

    @contextmanager
    def started(
        api_key_file: str | None = None, sampler: dict[str, Any] | None = None, **limits: Any
    ) -> Iterator[Served]:
        app = build(served_folder, api_key_file, None, sampler or {}, "cpu", "float64", Limits(**limits))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run)
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield Served(server.servers[0].sockets[0].getsockname()[1], app)
        finally:
            server.should_exit = True
            thread.join()

    return started


@pytest.fixture(scope="session")
def served(serve: Serve) -> Iterator[Served]:
    """One for all tests that change nothing of it."""
    with serve() as server:
        yield server


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@contextmanager
def slowed(model: CoDALanguageModel, seconds: float) -> Iterator[list[int]]:
    """Every network evaluation takes so long; yields the rows of each."""
    sizes: list[int] = []

    def wait(module: Any, args: Any) -> None:
        sizes.append(args[0].shape[0])
        time.sleep(seconds)

    hook = model.register_forward_pre_hook(wait)
    try:
        yield sizes
    finally:
        hook.remove()


def events(body: bytes) -> list[tuple[str, Any]]:
    """Names and data of server-sent events."""
    found = []
    for block in body.decode().strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = lines["data"]
        found.append((lines.get("event", "message"), data if data == "[DONE]" else json.loads(data)))
    return found


ROOT = Path(__file__).resolve().parents[2]
