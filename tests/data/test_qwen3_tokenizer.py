"""The real Qwen3 tokenizer, whose files lie beside the repository on some machines."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from coda.data import load_tokenizer
from coda.data.tokenizer import MASK_TOKEN, separator_id, tokenizer_fingerprint
from tests.data.conftest import Texts
from tests.data.helpers import prepared

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "tokenizer" / "qwen3"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the Qwen3 tokenizer is not at {FOLDER}")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(str(FOLDER))


def test_special_ids_are_those_of_the_released_models(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.mask_token == MASK_TOKEN
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (151669, 151643, 151645)


def test_only_the_mask_is_added(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == 151670


def test_documents_end_with_the_end_of_text(tokenizer: PreTrainedTokenizerBase) -> None:
    assert separator_id(tokenizer) == 151643


def test_special_tokens_in_raw_text_are_split(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "x <|mask|> <|endoftext|><|im_start|>user<|im_end|>"
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not set(ids) & {151669, 151643, 151644, 151645}
    assert tokenizer.decode(ids) == text


def test_special_tokens_in_a_prompt_are_special(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer("<|mask|><|im_end|>", add_special_tokens=False)["input_ids"] == [151669, 151645]


def test_code_survives(tokenizer: PreTrainedTokenizerBase) -> None:
    text = Path(__file__).read_text(encoding="utf-8") + "\t  é\u2028 👩‍👧\r\n"
    assert tokenizer.decode(tokenizer(text, split_special_tokens=True)["input_ids"]) == text


def test_a_store_of_it_reopens_with_the_same_plan(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    source = Texts(["x = '<|mask|>'", "y = 2"])
    store = prepared([source], tokenizer, tmp_path)
    assert prepared([source], load_tokenizer(str(FOLDER)), tmp_path).manifest == store.manifest
    assert store.manifest["tokenizer"] == tokenizer_fingerprint(load_tokenizer(str(tmp_path / "tokenizer")))
    stream = store.stream("texts", "train")
    tokens = stream.read(0, stream.tokens)
    assert (tokens == 151643).sum() == 2
    assert (tokens != 151669).all()
    assert source.reads == 1
