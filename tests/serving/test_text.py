"""Text leaves as the model wrote it, no sooner than it is certain, and ends where it should."""

import pytest
from transformers import PreTrainedTokenizerFast

from coda.data.tokenizer import train_tokenizer
from coda.serving.text import Detokenizer, Transcript


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["\n\n    return x\t \nab abc"] * 3, 300)


@pytest.fixture(scope="module")
def detokenizer(tokenizer: PreTrainedTokenizerFast) -> Detokenizer:
    return Detokenizer(tokenizer)


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


WRITTEN = [
    "\n\n    return x\t \n",
    "  x ,  y .  'z' n't ! ?",  # what tokenizers like to clean up
    "\t\r\n \u00a0",
    "é€😀 and \ufffd",
    "",
    "<|im_start|>x",
]


@pytest.mark.parametrize("written", WRITTEN, ids=repr)
@pytest.mark.parametrize("stops", [(), ("never",)])
def test_text_is_intact_however_it_arrives(
    tokenizer: PreTrainedTokenizerFast, detokenizer: Detokenizer, written: str, stops: tuple[str, ...]
) -> None:
    tokens = ids(tokenizer, written)
    for size in (1, 2, len(tokens) or 1):
        transcript = Transcript(detokenizer, stops)
        pieces = [transcript.read(tokens[:end], whole=False) for end in range(0, len(tokens) + 1, size)]
        assert transcript.reason is None
        pieces.append(transcript.read(tokens, whole=True))
        assert "".join(pieces) == written
        assert (transcript.reason, transcript.tokens) == ("length", len(tokens))


def test_a_character_is_sent_when_its_last_byte_is_there(
    tokenizer: PreTrainedTokenizerFast, detokenizer: Detokenizer
) -> None:
    tokens = ids(tokenizer, "a😀b")
    assert len(tokens) == 6
    transcript = Transcript(detokenizer)
    assert [transcript.read(tokens[:end], False) for end in range(1, 7)] == ["a", "", "", "", "😀", "b"]


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|im_end|>"])
def test_an_end_token_ends_the_text_and_is_counted(
    tokenizer: PreTrainedTokenizerFast, detokenizer: Detokenizer, end: str
) -> None:
    tokens = ids(tokenizer, f"ab {end} c{end}")
    for whole in (False, True):
        transcript = Transcript(detokenizer)
        assert transcript.read(tokens, whole) == "ab "
        assert (transcript.reason, transcript.tokens) == ("stop", len(ids(tokenizer, f"ab {end}")))
        assert transcript.read(tokens, True) == ""


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (["def"], "\n\nx = 1\n"),
        (["\n\nx"], ""),
        (["f g", "1\nd"], "\n\nx = "),
        (["= 1\ndef g", "1"], "\n\nx = "),  # begun first, but complete later
        (["1", " = 1"], "\n\nx"),  # complete at the same time: the longer one
        (["def g():\n    return y"], "\n\nx = 1\ndef g():\n    pass"),
        (["s"], "\n\nx = 1\ndef g():\n    pa"),
    ],
    ids=str,
)
def test_no_stop_string_is_ever_sent_in_part(
    tokenizer: PreTrainedTokenizerFast, detokenizer: Detokenizer, stops: list[str], text: str
) -> None:
    written = "\n\nx = 1\ndef g():\n    pass"
    tokens = ids(tokenizer, written)
    for size in (1, 3, len(tokens)):
        transcript = Transcript(detokenizer, stops)
        sent = ""
        for end in [*range(size, len(tokens), size), len(tokens)]:
            sent += transcript.read(tokens[:end], whole=end == len(tokens))
            assert text.startswith(sent)
        assert sent == text
        assert transcript.reason == ("length" if text == written else "stop")
        assert tokenizer.decode(tokens[: transcript.tokens]).startswith(text)
        if text != written:
            shorter = tokenizer.decode(tokens[: transcript.tokens - 1])
            assert not any(stop in shorter for stop in stops), "tokens behind the stop string are counted"


def test_text_is_held_back_only_while_it_may_begin_a_stop_string(
    tokenizer: PreTrainedTokenizerFast, detokenizer: Detokenizer
) -> None:
    transcript = Transcript(detokenizer, ["ab\n"])
    begun = ids(tokenizer, "x a")
    assert transcript.read(begun, False) == "x "
    assert transcript.read(begun + ids(tokenizer, "b"), False) == ""
    assert transcript.read(begun + ids(tokenizer, "b") + ids(tokenizer, "c"), False) == "abc"


def test_pieces_of_a_draft_join_to_its_text(tokenizer: PreTrainedTokenizerFast, detokenizer: Detokenizer) -> None:
    mask, end = tokenizer.mask_token_id, tokenizer.eos_token_id
    for written in WRITTEN:
        tokens = ids(tokenizer, written)
        assert "".join(piece or "" for piece in detokenizer.pieces(tokens)) == written
    emoji = ids(tokenizer, "😀")
    assert detokenizer.pieces([mask, *emoji, mask, end]) == [None, "", "", "", "😀", None, ""]
    assert detokenizer.pieces([*emoji[:2], mask]) == ["", "�", None]
    assert detokenizer.pieces([emoji[0], *ids(tokenizer, "ab")])[-1].endswith("b")  # type: ignore[union-attr]
