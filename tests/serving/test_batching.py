"""Requests share batches without changing each other; those that nobody waits for leave."""

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.serving.conftest import Serve, Served, slowed, wait_until

TOKENS = 24


def ask(served: Served, seed: int, **options: Any) -> str:
    options = {"max_tokens": TOKENS, "temperature": 1.0, "prompt": f"x{seed} = ", **options}
    return served.client().completions.create(model="tiny-coder", seed=seed, **options).choices[0].text


def alone(served: Served, seed: int, **settings: Any) -> str:
    return served.alone(f"x{seed} = ", tokens=TOKENS, seed=seed, temperature=1.0, **settings)


def test_requests_of_the_same_settings_share_a_batch(serve: Serve) -> None:
    with serve(max_wait_ms=10_000, max_batch_size=8) as served, ThreadPoolExecutor(8) as pool:
        with slowed(served.model, 0.0) as sizes:
            texts = list(pool.map(lambda seed: ask(served, seed), range(8)))
        assert texts == [alone(served, seed) for seed in range(8)]
        assert sizes[0] == 8, "a full batch waits no longer"
        assert sum(sizes) <= 8 * TOKENS
        assert served.metric("coda_batch_size_sum") == sum(sizes)
        assert served.metric("coda_batch_size_count") == len(sizes)
        assert served.metric("coda_row_evaluations_total") == sum(sizes)


def test_rows_of_other_settings_are_in_other_batches(serve: Serve) -> None:
    settings: list[dict[str, Any]] = [{"steps": 5}, {"alg": "maskgit_plus", "tokens_per_step": 4}]
    with serve(max_wait_ms=300) as served, ThreadPoolExecutor(2) as pool, slowed(served.model, 0.0) as sizes:
        texts = list(pool.map(lambda seed: ask(served, seed, extra_body=settings[seed]), range(2)))
        assert set(sizes) == {1}
        assert texts == [alone(served, seed, **settings[seed]) for seed in range(2)]


def test_other_settings_take_turns_in_batches_of_their_own(serve: Serve) -> None:
    """A short request is answered while a long one is being decoded."""
    with serve() as served, ThreadPoolExecutor(2) as pool, slowed(served.model, 0.04):
        long = pool.submit(ask, served, 1, extra_body={"alg": "topk_margin"})
        wait_until(lambda: served.metric("coda_running_rows") == 1)
        assert ask(served, 2, extra_body={"steps": 2}) == alone(served, 2, steps=2)
        assert not long.done()
        assert long.result() == alone(served, 1, alg="topk_margin")


def test_the_queue_is_bounded(serve: Serve) -> None:
    with serve(max_batch_size=1, max_queue=2) as served, slowed(served.model, 0.04), ThreadPoolExecutor(3) as pool:
        running = pool.submit(ask, served, 0)
        wait_until(lambda: served.metric("coda_running_rows") == 1)
        queued = pool.submit(ask, served, 1, n=2)
        wait_until(lambda: served.metric("coda_queue_depth") == 2)
        with pytest.raises(openai.RateLimitError, match="the queue is full") as error:
            ask(served, 2)
        assert int(error.value.response.headers["retry-after"]) >= 1
        assert running.result() == alone(served, 0)
        assert queued.result() == alone(served, 1)
        assert served.metric("coda_requests_total", route="/v1/completions", status="429") == 1
        assert ask(served, 3) == alone(served, 3), "there is room again"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_is_computed_for_no_more(serve: Serve, stream: bool) -> None:
    with (
        serve(max_wait_ms=10_000, max_batch_size=2) as served,
        slowed(served.model, 0.04) as sizes,
        ThreadPoolExecutor(1) as pool,
    ):
        body = json.dumps({"prompt": "y", "max_tokens": TOKENS, "temperature": 1.0, "stream": stream})
        connection = http.client.HTTPConnection("127.0.0.1", served.port)
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        company = pool.submit(ask, served, 5)
        wait_until(lambda: len(sizes) >= 5)
        assert sizes[-1] == 2
        connection.sock.close()
        wait_until(lambda: sizes[-1] == 1)
        assert len(sizes) < TOKENS, "it left before its end"
        text = company.result()
        assert len(sizes) <= TOKENS + 5
        assert served.metric("coda_cancelled_rows_total") == 1
        threading.Event().wait(0.1)
        assert len(sizes) <= TOKENS + 5, "nothing is computed for nobody"
        assert text == alone(served, 5)


def test_a_client_that_goes_away_leaves_the_queue(serve: Serve) -> None:
    with serve(max_batch_size=1) as served, slowed(served.model, 0.04) as sizes, ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, served, 0)
        wait_until(lambda: served.metric("coda_running_rows") == 1)
        connection = http.client.HTTPConnection("127.0.0.1", served.port)
        connection.request("POST", "/v1/completions", b'{"prompt": "y", "n": 3}', {"Content-Type": "application/json"})
        wait_until(lambda: served.metric("coda_queue_depth") == 3)
        connection.sock.close()
        wait_until(lambda: served.metric("coda_queue_depth") == 0)
        assert not running.done()
        running.result()
        assert len(sizes) == TOKENS


def test_a_stop_string_ends_the_computation(served: Served) -> None:
    """In blocks from left to right, what follows the stop string is never computed."""
    whole = ask(served, 8, extra_body={"block_length": 4})
    stop = whole[6:8]
    with slowed(served.model, 0.0) as sizes:
        answer = served.client().completions.create(
            model="tiny-coder", prompt="x8 = ", seed=8, temperature=1.0, max_tokens=TOKENS, stop=[stop, "never"],
            extra_body={"block_length": 4},
        )  # fmt: skip
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert len(sizes) < TOKENS
    assert answer.usage is not None and answer.usage.completion_tokens <= len(sizes)


def test_an_end_of_text_ends_the_computation(served: Served) -> None:
    options = {"model": "tiny-coder", "prompt": "x = ", "temperature": 1.0, "max_tokens": TOKENS}
    create = served.client().completions.create
    choices = create(**options, n=16, seed=0, extra_body={"block_length": 4}).choices  # type: ignore[call-overload]
    seed = next(choice.index for choice in choices if choice.finish_reason == "stop" and choice.text)
    with slowed(served.model, 0.0) as sizes:
        answer = create(**options, seed=seed, extra_body={"block_length": 4})  # type: ignore[call-overload]
    assert answer.choices[0].text == choices[seed].text
    assert answer.choices[0].text == served.alone("x = ", "", TOKENS, seed, temperature=1.0, block_length=4)
    assert len(sizes) < TOKENS
    assert answer.usage.completion_tokens <= len(sizes)


def test_rows_under_way_are_told_when_the_server_ends(serve: Serve) -> None:
    with ThreadPoolExecutor(2) as pool:
        with serve(max_batch_size=1) as served:
            slow = slowed(served.model, 0.3)  # more than uvicorn waits for
            slow.__enter__()
            answers = [pool.submit(ask, served, seed) for seed in range(2)]
            wait_until(lambda: served.metric("coda_queue_depth") == 1)
        slow.__exit__(None, None, None)
        for answer in answers:
            with pytest.raises(openai.APIError):
                answer.result()
    assert not served.app.state.engine.alive
