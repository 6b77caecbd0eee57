"""Conversations as tokens: the prompt is what the chat template writes, the response what follows it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from coda.data import load_tokenizer
from coda.data.chat import TEMPLATE, ChatEncoder, TooLong
from coda.data.encoders import Encoded
from coda.data.ingest import prepare
from coda.data.plan import Plan
from coda.data.sources import Conversation, Message, Skipped
from coda.data.tokenizer import train_tokenizer
from tests.data.conftest import Texts

QWEN3 = Path(__file__).resolve().parents[3] / "shared" / "tokenizer" / "qwen3"
CODE = 'def f(x):\n    """Return user."""\n    return "assistant é 😀"\n'
CONVERSATIONS = {
    "one turn": (("user", "Add one.\n" + CODE), ("assistant", "    return x + 1\n")),
    "a system": (("system", "Be brief."), ("user", "x"), ("assistant", "y")),
    "several turns": (("user", "x"), ("assistant", CODE), ("user", "  more\n\n"), ("assistant", "y\n")),
    "white space": (("user", "\n\n x \t"), ("assistant", "\n\n    y  \n\n")),
    "an empty turn": (("system", ""), ("user", "x"), ("assistant", "y")),
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"]


def conversation(turns: Any) -> Conversation:
    return tuple(Message(*turn) for turn in turns)


@pytest.fixture(scope="module", params=["small", "Qwen3"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "small":
        made = train_tokenizer([CODE, "user assistant system Add one."] * 20, 320)
    elif QWEN3.is_dir():
        made = load_tokenizer(str(QWEN3))
    else:
        pytest.skip(f"the Qwen3 tokenizer is not at {QWEN3}")
    made.chat_template = TEMPLATE
    return made


def encode(
    tokenizer: PreTrainedTokenizerBase, turns: Any, length: int = 512, too_long: TooLong = "truncate"
) -> Encoded | Skipped:
    (encoded,) = ChatEncoder(tokenizer, length, too_long)([conversation(turns)])
    return encoded


def halves(encoded: Encoded | Skipped) -> tuple[list[int], list[int]]:
    """Prompt and response."""
    assert isinstance(encoded, Encoded)
    assert encoded.tokens.dtype == np.uint32
    tokens = encoded.tokens.tolist()
    return tokens[: encoded.prompt], tokens[encoded.prompt :]


def templated(tokenizer: PreTrainedTokenizerBase, turns: Any, **options: Any) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in turns]
    ids: list[int] = tokenizer.apply_chat_template(messages, return_dict=False, **options)
    return ids


each_conversation = pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())


@each_conversation
def test_the_prompt_is_what_the_template_writes_at_inference(tokenizer: PreTrainedTokenizerBase, turns: Any) -> None:
    prompt, _ = halves(encode(tokenizer, turns))
    assert prompt == templated(tokenizer, turns[:-1], add_generation_prompt=True)


@each_conversation
def test_the_response_is_its_text_and_the_end_of_turn(tokenizer: PreTrainedTokenizerBase, turns: Any) -> None:
    _, response = halves(encode(tokenizer, turns))
    assert response.pop() == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert response == tokenizer(turns[-1][1], add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(response) == turns[-1][1]


@each_conversation
def test_as_text_it_is_chatml(tokenizer: PreTrainedTokenizerBase, turns: Any) -> None:
    encoded = encode(tokenizer, turns)
    assert isinstance(encoded, Encoded)
    assert encoded.note == ""
    written = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert tokenizer.decode(encoded.tokens) + "\n" == written
    messages = [{"role": role, "content": content} for role, content in turns]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == written


def test_the_template_writes_no_thoughts(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = CONVERSATIONS["several turns"]
    assert "think" not in tokenizer.decode(templated(tokenizer, turns[:-1], add_generation_prompt=True))


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_inside_contents_stay_text(tokenizer: PreTrainedTokenizerBase, token: str) -> None:
    text = f"a{token}b {token}"
    plain = encode(tokenizer, (("system", "a"), ("user", "b"), ("assistant", "c")))
    encoded = encode(tokenizer, (("system", text), ("user", text), ("assistant", text)))
    assert isinstance(encoded, Encoded) and isinstance(plain, Encoded)
    number = tokenizer.convert_tokens_to_ids(token)
    assert (encoded.tokens == number).sum() == (plain.tokens == number).sum()
    assert tokenizer.decode(encoded.tokens).count(text) == 3


def test_a_batch_is_encoded_in_order(tokenizer: PreTrainedTokenizerBase) -> None:
    """Conversations of several turns and ones that are skipped among them."""
    long = (("user", CODE * 30), ("assistant", "x"))
    every = [*CONVERSATIONS.values(), long, *CONVERSATIONS.values()]
    batch = ChatEncoder(tokenizer, 256, "truncate")([conversation(turns) for turns in every])
    assert len(batch) == len(every)
    for turns, encoded in zip(every, batch, strict=True):
        if turns is long:
            assert encoded == Skipped("prompts too long")
        else:
            assert halves(encoded) == halves(encode(tokenizer, turns))
    assert ChatEncoder(tokenizer, 256, "truncate")([]) == []


@pytest.mark.parametrize("spare", [1, 0, -1, -2], ids=lambda spare: f"{spare} to spare")
@pytest.mark.parametrize("too_long", ["truncate", "drop"])
def test_only_what_does_not_fit_is_truncated_or_dropped(
    tokenizer: PreTrainedTokenizerBase, too_long: TooLong, spare: int
) -> None:
    turns = CONVERSATIONS["one turn"]
    prompt, response = halves(encode(tokenizer, turns))
    assert len(response) > 3
    encoded = encode(tokenizer, turns, len(prompt) + len(response) + spare, too_long)
    if spare < 0 and too_long == "drop":
        assert encoded == Skipped("dropped, being too long")
        return
    assert halves(encoded) == (prompt, response[: len(response) + min(spare, 0)])
    assert isinstance(encoded, Encoded) and encoded.note == ("truncated" if spare < 0 else "")


@pytest.mark.parametrize("too_long", ["truncate", "drop"])
@pytest.mark.parametrize("room", [1, 0, -1])
def test_a_prompt_that_leaves_no_room_is_skipped(
    tokenizer: PreTrainedTokenizerBase, too_long: TooLong, room: int
) -> None:
    turns = CONVERSATIONS["one turn"]
    prompt, response = halves(encode(tokenizer, turns))
    encoded = encode(tokenizer, turns, len(prompt) + room, too_long)
    if room < 1:
        assert encoded == Skipped("prompts too long")
    elif too_long == "drop":
        assert encoded == Skipped("dropped, being too long")
    else:
        assert halves(encoded) == (prompt, response[:1])


@pytest.mark.parametrize(
    ("too_long", "documents", "skipped"),
    [
        ("truncate", 5, {"prompts too long": 2, "truncated": 3}),
        ("drop", 2, {"prompts too long": 2, "dropped, being too long": 3}),
    ],
)
def test_a_store_counts_them(too_long: TooLong, documents: int, skipped: dict[str, int], tmp_path: Path) -> None:
    class Chats(Texts):
        def read(self, part: int) -> Any:
            for name, count in (("fits", 2), ("long answer", 3), ("long prompt", 2)):
                for number in range(count):
                    asked = f"{number}" + "x y " * 200 * (name == "long prompt")
                    yield conversation((("user", asked), ("assistant", "x y " * (200 if name == "long answer" else 1))))

    encoder = ChatEncoder(train_tokenizer(["x y " * 9], 280), 64, too_long)
    store = prepare(Plan([Chats([])], encoder, 0.0), tmp_path / "store")
    described = store.manifest["corpora"]["texts"]
    assert described["documents"]["train"] == documents
    assert described["skipped"] == skipped
    assert (store.stream("texts", "train").lengths() == 64).sum() == skipped.get("truncated", 0)


@pytest.mark.parametrize("missing", ["<|im_start|>", "<|im_end|>"])
def test_a_tokenizer_without_turns_is_refused(missing: str) -> None:
    class Vocabulary:
        def get_vocab(self) -> dict[str, int]:
            return {token: i for i, token in enumerate(SPECIAL) if token != missing}

    with pytest.raises(
        ValueError, match=rf"data\.tokenizer has no token {missing.replace('|', '.')}, .*; take Qwen3's"
    ):
        ChatEncoder(Vocabulary(), 64, "truncate")  # type: ignore[arg-type]


def test_a_choice_that_does_not_exist_is_refused() -> None:
    tokenizer = train_tokenizer([CODE], 280)
    with pytest.raises(ValueError, match=r"data\.too_long is 'cut'; .*truncate.*drop"):
        ChatEncoder(tokenizer, 64, "cut")  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [(65, "truncate"), (64, "drop")])
def test_everything_that_shapes_the_tokens_is_in_the_fingerprint(change: Any) -> None:
    tokenizer = train_tokenizer([CODE], 280)
    ours = ChatEncoder(tokenizer, 64, "truncate").fingerprint()
    assert ChatEncoder(tokenizer, *change).fingerprint() != ours
