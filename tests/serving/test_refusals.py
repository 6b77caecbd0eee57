"""What cannot be answered is refused before it is decoded, in OpenAI's shape, naming what is wrong."""

import json
import logging
from typing import Any

import openai
import pytest

from tests.serving.conftest import Serve, Served, events


def refusal(served: Served, path: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    status, headers, answer = served.request("POST", path, {"prompt": "x", **body})
    assert status == 400, answer
    assert headers["content-type"] == "application/json"
    error = json.loads(answer)["error"]
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"steps": 0}, "steps", "steps is 0; it must be at least 1"),
        ({"alg": "beam"}, "alg", "alg is beam; it must be one of origin"),
        ({"temperature": -1}, "temperature", "temperature is -1.0; it must be 0 or more"),
        ({"top_p": 0}, "top_p", "top_p is 0.0; it must be in (0, 1]"),
        ({"threshold": 0.9, "steps": 4}, "threshold", "threshold contradicts steps"),
        ({"cache": "dual"}, "cache", "there is no block_length"),
        ({"block_length": 2, "steps": 3, "max_tokens": 16}, "steps", "a row has 8 blocks of block_length 2"),
        ({"guide": "self", "steps": 3}, "guide", "guide decides how many tokens"),
        ({"guide": "gpt"}, "guide", "Input should be 'self'"),
        ({"steps": "4"}, "steps", "valid integer"),
        ({"steps": True}, "steps", "valid integer"),
        ({"top_p": float("nan")}, "top_p", "finite number"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 10**6}, "n", "1000000 choices; this server takes 256 at once"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"stop": [""]}, "stop", "at least 1 character"),
        ({"stop": ["a"] * 17}, "stop", "at most 16 items"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({"prompt": [[]]}, "prompt", "at least 1 item"),
        ({"prompt": None}, "prompt", "valid string"),
        ({"prompt": [[4], [5, "x"]]}, "prompt", "prompt.1.1: Input should be a valid integer"),
        ({"prompt": [5, 1000]}, "prompt", "the token id 1000 is outside [0, "),
        ({"prompt": [5, -1]}, "prompt", "the token id -1 is outside"),
        ({"prompt": [5, 3]}, "prompt", "the token id 3 is the mask token; give a suffix instead"),
        ({"logprobs": 5}, "logprobs", "logprobs is not supported by this server"),
        ({"echo": True}, "echo", "echo is not supported"),
        ({"best_of": 3}, "best_of", "best_of is not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty is not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "logit_bias is not supported"),
        ({"thresold": 0.9}, "thresold", "thresold is no field of this request; those are"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_request_is_told_which_field_is_wrong(
    served: Served, body: dict[str, Any], param: str | None, message: str
) -> None:
    error = refusal(served, **body)
    assert message in error["message"]
    assert (error["param"] or "").split(".")[0] == (param or "")


def test_what_asks_for_nothing_is_ignored(served: Served) -> None:
    nothing = {"logprobs": None, "echo": False, "best_of": 1, "logit_bias": {}, "presence_penalty": 0, "user": "me"}
    body = {"prompt": "x", "max_tokens": 4, "seed": 0}
    plain = json.loads(served.request("POST", "/v1/completions", body)[2])
    same = json.loads(served.request("POST", "/v1/completions", {**body, **nothing})[2])
    assert plain["choices"] == same["choices"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": []}, "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "Input should be 'system'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "Input should be 'text'",
        ),
        ({"tools": [{"type": "function"}]}, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"suffix": "x"}, "suffix is no field of this request"),
    ],
    ids=str,
)
def test_a_bad_chat_is_told_what_is_wrong(served: Served, body: dict[str, Any], message: str) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}], **body}
    status, _, answer = served.request("POST", "/v1/chat/completions", chat)
    assert status == 400
    assert message in json.loads(answer)["error"]["message"]


def test_a_model_without_a_chat_template_refuses_chats(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.tokenizer, "chat_template", None)
    with pytest.raises(openai.BadRequestError, match="has no chat template; ask /v1/completions"):
        served.client().chat.completions.create(model="tiny-coder", messages=[{"role": "user", "content": "x"}])


def test_other_errors_have_the_same_shape(served: Served) -> None:
    for method, path, body, status in (
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/page/../app.py", None, 404),
        ("GET", "/page/index.html", None, 404),
        ("DELETE", "/v1/models", None, 405),
        ("POST", "/v1/completions", b"{no json", 400),
        ("POST", "/v1/completions", b"\xff", 400),
        ("POST", "/v1/completions", b"[]", 400),
        ("POST", "/v1/completions", b"", 400),
        ("POST", "/v1/completions", b"[" * 100_000, 400),
    ):
        found, _, answer = served.request(method, path, body)
        assert found == status, (path, answer)
        assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_too_large_is_refused_unread(serve: Serve) -> None:
    with serve(max_body_bytes=1000) as served:
        for headers in ({}, {"Transfer-Encoding": "chunked"}):
            body = json.dumps({"prompt": "x" * 1000}).encode()
            sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if headers else body
            status, _, answer = served.request("POST", "/v1/completions", sent, **headers)
            assert status == 413, answer
            assert b"more than 1000 bytes" in answer
        assert served.request("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200


def test_a_bug_tells_clients_nothing_and_the_log_everything(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("the secret is 42")

    body = {"prompt": "x", "max_tokens": 4}
    with monkeypatch.context() as patch:
        patch.setattr(type(served.model), "diffusion_decoder", broken)
        status, _, answer = served.request("POST", "/v1/completions", body)
    assert status == 500
    assert b"its log has the reason" in answer and b"42" not in answer
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, logger="uvicorn.error"):
        patch.setattr("coda.serving.batch.Batch._report", broken)
        with pytest.raises(openai.InternalServerError) as error:
            served.client().completions.create(model="tiny-coder", prompt="x", max_tokens=4)
        assert "42" not in str(error.value)
        streamed = events(served.request("POST", "/v1/completions", {**body, "stream": True})[2])
        assert streamed[-1][1]["error"]["code"] == "internal_error"
        with pytest.raises(openai.APIError, match="its log has the reason"):
            list(served.client().completions.create(model="tiny-coder", prompt="x", max_tokens=4, stream=True))
    assert "the secret is 42" in caplog.text
    assert served.request("GET", "/health")[0] == 200, "the engine goes on"
    assert served.request("POST", "/v1/completions", body)[0] == 200
