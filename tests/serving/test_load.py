"""Many clients at once, some of which go away: nothing is lost, nothing is mixed up, nothing piles up."""

import gc
import http.client
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import Serve, Served, events, wait_until

CLIENTS, ROUNDS = 64, 4
SETTINGS: list[dict[str, Any]] = [
    {},
    {"steps": 6},
    {"block_length": 4, "threshold": 0.2},
    {"alg": "origin", "steps": 9},
]


def question(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    body = {"prompt": f"x{number} = ", "max_tokens": rng.randint(1, 24), "seed": number, "temperature": 1.0}
    return body | {"top_p": 1.0, "suffix": rng.choice(["", "\n    return x"])} | rng.choice(SETTINGS)


def expected(served: Served, body: dict[str, Any]) -> str:
    rest = {name: value for name, value in body.items() if name not in ("prompt", "suffix", "max_tokens", "seed")}
    return served.alone(body["prompt"], body["suffix"], body["max_tokens"], body["seed"], **rest)


def ask(served: Served, number: int) -> str | None:
    """The answer; None from a client that has gone away."""
    rng = random.Random(-number - 1)
    stream, leaves = rng.random() < 0.5, rng.random() < 0.3
    body = question(number) | {"stream": stream, "stream_drafts": stream}
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        if leaves:
            time.sleep(rng.random() * 0.2)
            return None
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
    finally:
        connection.close()
    if not stream:
        return str(json.loads(answer)["choices"][0]["text"])
    found = events(answer)
    assert found[-1] == ("message", "[DONE]")
    return "".join(data["choices"][0]["text"] for _, data in found[:-1])


def resident() -> int:
    """Memory of this process, in KiB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.mark.slow
def test_sixty_four_clients_some_of_which_go_away(serve: Serve) -> None:
    with serve(max_batch_size=16, max_queue=CLIENTS) as served, ThreadPoolExecutor(CLIENTS) as pool:
        memory = []
        for turn in range(ROUNDS):
            numbers = range(turn * CLIENTS, (turn + 1) * CLIENTS)
            answers = dict(zip(numbers, pool.map(lambda number: ask(served, number), numbers), strict=True))
            stayed = {number: text for number, text in answers.items() if text is not None}
            assert CLIENTS / 2 < len(stayed) < CLIENTS
            wait_until(lambda: served.metric("coda_running_rows") + served.metric("coda_queue_depth") == 0)
            for number, text in stayed.items():
                assert text == expected(served, question(number)), question(number)
            memory.append(resident())
        rows, batches = served.metric("coda_batch_size_sum"), served.metric("coda_batch_size_count")
        assert rows / batches > 2, "requests are decoded one by one"
        assert served.metric("coda_cancelled_rows_total") > 0
        assert memory[-1] - memory[1] < 8 * 1024, memory
