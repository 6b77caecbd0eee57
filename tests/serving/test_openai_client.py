"""OpenAI's own client against the server: text, streams, samples, usage and errors."""

from typing import Any

import openai
import pytest

from tests.serving.conftest import POSITIONS, Serve, Served, events

PROMPT, SUFFIX = "def f(x):\n", "\n    return y\n"


def text(served: Served, prompt: Any = PROMPT, **options: Any) -> str:
    options = {"max_tokens": 8, "seed": 0, **options}
    return served.client().completions.create(model="tiny-coder", prompt=prompt, **options).choices[0].text


def test_a_completion_is_what_the_command_writes(served: Served) -> None:
    answer = served.client().completions.create(model="tiny-coder", prompt=PROMPT, max_tokens=9, seed=3)
    assert answer.object == "text_completion"
    assert answer.model == "tiny-coder"
    assert answer.choices[0].text == served.alone(PROMPT, tokens=9, seed=3)
    assert answer.choices[0].finish_reason == "length"
    given = len(served.tokenizer(PROMPT)["input_ids"])
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (given, 9)
    assert answer.usage.total_tokens == given + 9
    assert answer.usage.model_extra == {"denoising_steps": 9}


def test_a_suffix_is_infilled(served: Served) -> None:
    filled = text(served, suffix=SUFFIX, max_tokens=7, seed=5, temperature=1.0)
    assert filled == served.alone(PROMPT, SUFFIX, 7, 5, temperature=1.0)
    assert filled != text(served, max_tokens=7, seed=5, temperature=1.0), "the suffix changes nothing"


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 3},
        {"tokens_per_step": 3, "alg": "maskgit_plus"},
        {"threshold": 0.1, "block_length": 4},
        {"alg": "origin", "steps": 5, "temperature": 1.0, "top_p": 0.8},
        {"cache": "dual", "block_length": 3, "top_k": 7},
        {"remasking": "remdm", "remasking_rate": 0.3, "steps": 6},
        {"remasking": "confidence_drop", "remasking_rate": 0.1, "block_length": 4},
        {"guide": "self"},
    ],
    ids=str,
)
def test_settings_of_the_sampler_are_those_of_the_command(served: Served, settings: dict[str, Any]) -> None:
    ours = {name: settings[name] for name in settings if name not in ("temperature", "top_p")}
    theirs = {name: settings[name] for name in settings if name in ("temperature", "top_p")}
    assert text(served, extra_body=ours, max_tokens=12, **theirs) == served.alone(PROMPT, tokens=12, **settings)


def test_prompts_are_texts_or_tokens_one_or_several(served: Served) -> None:
    ids = served.tokenizer(PROMPT)["input_ids"]
    create = served.client().completions.create
    expected = text(served)
    for prompt in ([PROMPT], ids, [ids]):
        assert text(served, prompt) == expected
    both = create(model="tiny-coder", prompt=[PROMPT, "x = "], max_tokens=6, n=2, seed=10)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    asked = [(PROMPT, 10), (PROMPT, 11), ("x = ", 12), ("x = ", 13)]
    assert [c.text for c in both.choices] == [served.alone(prompt, tokens=6, seed=seed) for prompt, seed in asked]
    assert both.usage is not None
    assert both.usage.prompt_tokens == len(ids) + len(served.tokenizer("x = ")["input_ids"])
    assert both.usage.completion_tokens == 24


def test_an_empty_prompt_begins_a_document(served: Served) -> None:
    assert text(served, "") == served.alone("")


def test_without_a_seed_texts_differ(served: Served) -> None:
    options = {"max_tokens": 20, "temperature": 1.5, "top_p": 1.0}
    assert text(served, seed=None, **options) != text(served, seed=None, **options)
    assert text(served, seed=7, **options) == text(served, seed=7, **options)


def test_a_chat_is_answered(served: Served) -> None:
    answer = served.client().chat.completions.create(
        model="tiny-coder",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "f"}, {"type": "text", "text": "?"}]},
        ],
        max_completion_tokens=10,
        seed=1,
    )
    asked = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nf?<|im_end|>\n<|im_start|>assistant\n"
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == served.alone(asked, tokens=10, seed=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(served.tokenizer(asked)["input_ids"])


@pytest.mark.parametrize("settings", [{}, {"block_length": 3}, {"stop": ["re"]}, {"n": 3, "temperature": 1.0}], ids=str)
def test_a_stream_is_the_whole_answer_in_pieces(served: Served, settings: dict[str, Any]) -> None:
    extra = {"block_length": settings["block_length"]} if "block_length" in settings else {}
    options: dict[str, Any] = {name: value for name, value in settings.items() if name not in extra}
    options |= {"model": "tiny-coder", "prompt": PROMPT, "max_tokens": 24, "seed": 2, "extra_body": extra}
    create = served.client().completions.create
    whole = create(**options)
    texts, reasons, usage, pieces = [""] * len(whole.choices), [""] * len(whole.choices), None, 0
    for chunk in create(**options, stream=True, stream_options={"include_usage": True}):
        assert usage is None, "the usage comes last"
        usage = chunk.usage
        for choice in chunk.choices:
            assert not reasons[choice.index], "nothing follows the end"
            texts[choice.index] += choice.text
            pieces += bool(choice.text)
            reasons[choice.index] = choice.finish_reason or ""
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    if "block_length" in settings:
        assert pieces > 3


def test_a_chat_streams(served: Served) -> None:
    options: dict[str, Any] = {"model": "tiny-coder", "messages": [{"role": "user", "content": "x"}], "seed": 0}
    create = served.client().chat.completions.create
    whole = create(**options, max_tokens=12).choices[0]
    chunks = list(create(**options, max_tokens=12, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason
    assert len({chunk.id for chunk in chunks}) == 1


def test_drafts_are_events_of_their_own_that_the_client_takes_for_empty_chunks(served: Served) -> None:
    options = {"prompt": PROMPT, "max_tokens": 9, "seed": 4, "block_length": 3}
    body = {**options, "stream": True, "stream_drafts": True}
    found = events(served.request("POST", "/v1/completions", body)[2])
    assert found[-1] == ("message", "[DONE]")
    drafts = [data["choices"][0]["draft"] for name, data in found if name == "draft"]
    assert [draft["step"] for draft in drafts] == list(range(10))
    assert [draft["masked"] for draft in drafts] == list(range(9, -1, -1))
    cells: list[str | None] = [None] * 9
    for draft in drafts:
        for change in draft["changes"]:
            cells[change["position"]] = change["text"]
        assert cells.count(None) == draft["masked"]
    assert "".join(cell or "" for cell in cells) == served.alone(PROMPT, tokens=9, seed=4, block_length=3)

    extra = {"block_length": 3, "stream_drafts": True}
    chunks = served.client().completions.create(
        model="tiny-coder", prompt=PROMPT, max_tokens=9, seed=4, stream=True, extra_body=extra
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == "".join(cell or "" for cell in cells)
    assert "draft" not in {
        name for name, _ in events(served.request("POST", "/v1/completions", {**options, "stream": True})[2])
    }


def test_models_are_listed(served: Served) -> None:
    models = served.client().models
    assert [model.id for model in models.list()] == ["tiny-coder"]
    card = models.retrieve("tiny-coder")
    assert card.model_extra is not None
    assert card.model_extra["max_model_len"] == POSITIONS
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny-coder'"):
        models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError, match="model is 'gpt'; this server has 'tiny-coder'"):
        served.client().completions.create(model="gpt", prompt="x")


def test_a_key_is_asked_for(serve: Serve, tmp_path: Any) -> None:
    (tmp_path / "keys").write_text("first\n\n  sécond \n")
    with serve(api_key_file=str(tmp_path / "keys")) as served:
        for wrong in ("none", "first\u2009", "", "firs", "first second"):
            status, headers, body = served.request(
                "GET", "/v1/models", Authorization=f"Bearer {wrong}".encode().decode("latin-1")
            )
            assert status == 401, wrong
            assert headers["www-authenticate"] == "Bearer"
            assert b"invalid_api_key" in body
        with pytest.raises(openai.AuthenticationError, match="no key, or a wrong one"):
            served.client("wrong").completions.create(model="tiny-coder", prompt="x")
        assert served.request("POST", "/v1/completions", b"no json")[0] == 401, "nothing is read without a key"
        assert served.client("first").completions.create(model="tiny-coder", prompt="x", max_tokens=1).choices
        assert served.request("GET", "/v1/models", Authorization="bearer s\u00c3\u00a9cond")[0] == 200
        assert served.request("GET", "/health")[0] == 200
        assert served.request("GET", "/")[0] == 200


def test_what_takes_too_many_positions_is_refused_with_the_numbers(served: Served) -> None:
    given = len(served.tokenizer(PROMPT)["input_ids"])
    with pytest.raises(openai.BadRequestError) as error:
        text(served, max_tokens=POSITIONS)
    assert f"are {given + POSITIONS}; the model has {POSITIONS} positions" in str(error.value)
    assert error.value.code == "context_length_exceeded"
    long = "x " * POSITIONS
    with pytest.raises(openai.BadRequestError, match="a gap of 1 are"):
        text(served, long, max_tokens=None)
    room = POSITIONS - given
    answer = served.client().completions.create(
        model="tiny-coder", prompt=PROMPT, max_tokens=room, seed=0, extra_body={"steps": 2}
    )
    assert answer.usage is not None and answer.usage.total_tokens <= POSITIONS
