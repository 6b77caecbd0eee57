"""The trained tokenizer, and what any tokenizer must have before diffusion can use it."""

import inspect
import random
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from coda.data import load_tokenizer
from coda.data.tokenizer import (
    END_OF_TEXT,
    END_OF_TURN,
    MASK_TOKEN,
    separator_id,
    tokenizer_fingerprint,
    train_tokenizer,
    with_special_tokens,
)

CODE = [inspect.getsource(random)]
TEXTS = [
    "plain words, don't n't 's . , !",
    "    if x:\n\t\treturn  y   \n\n\n",
    " \r\n\r\n \r \x0b\x0c\x1c\x85\u2028\u2029\u3000\xa0\ufeff",
    "\x00\x01\x7f NUL and friends",
    "Ünïcödé e\u0301 \u1e9b\u0323 ﬁ Ⅷ ½ ٣ 中文 한국어 עברית हिन्दी",
    "👩‍👩‍👧‍👦 🏳️‍🌈 \U0010ffff\ud7ff\ue000\uffff",
    "1234567890 0x_FF 1e-9 ==== #---- ->>> '''\"\"\"",
    f"literal {MASK_TOKEN} {END_OF_TEXT}{END_OF_TURN} <|im_start|>user",
    "a",
    " ",
    "",
]


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    return train_tokenizer(CODE, 320)


@pytest.fixture(scope="module")
def loaded(trained: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save_pretrained(folder)
    return load_tokenizer(str(folder))


def raw_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of raw text, as the token store takes them."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def random_text(seed: int) -> str:
    """Characters of all planes and runs of whitespace."""
    draw = random.Random(seed)
    planes = [draw.choice([range(32, 127), range(0xD800), range(0xE000, 0x110000)]) for _ in range(200)]
    return "".join(
        draw.choice([chr(draw.choice(plane)), draw.choice(" \n\t\r") * draw.randint(1, 9)]) for plane in planes
    )


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("which", ["trained", "loaded"])
def test_any_text_survives(which: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(which)
    assert tokenizer.decode(raw_ids(tokenizer, text)) == text


@pytest.mark.parametrize("seed", range(5))
def test_random_text_survives(loaded: PreTrainedTokenizerBase, seed: int) -> None:
    text = random_text(seed)
    assert loaded.decode(raw_ids(loaded, text)) == text


def test_it_has_the_special_tokens_of_qwen3_and_a_mask(loaded: PreTrainedTokenizerBase) -> None:
    assert (loaded.pad_token, loaded.eos_token, loaded.mask_token) == (END_OF_TEXT, END_OF_TURN, MASK_TOKEN)
    ids = loaded.convert_tokens_to_ids([END_OF_TEXT, "<|im_start|>", END_OF_TURN, MASK_TOKEN])
    assert sorted(ids) == [0, 1, 2, 3]


def test_special_tokens_in_a_prompt_are_special(loaded: PreTrainedTokenizerBase) -> None:
    raw_ids(loaded, "splitting once must not split from then on")
    assert loaded(f"{MASK_TOKEN}{END_OF_TEXT}")["input_ids"] == [loaded.mask_token_id, loaded.pad_token_id]


def test_special_tokens_in_raw_text_are_text(loaded: PreTrainedTokenizerBase) -> None:
    ids = raw_ids(loaded, f"x{MASK_TOKEN}{END_OF_TEXT}{END_OF_TURN}<|im_start|>")
    assert not set(ids) & set(loaded.all_special_ids)


def test_the_vocabulary_has_the_size_asked_for(trained: PreTrainedTokenizerFast) -> None:
    assert len(trained) == 320
    assert sorted(trained.get_vocab().values()) == list(range(320))


def test_merges_shorten_what_it_was_trained_on(trained: PreTrainedTokenizerFast) -> None:
    assert len(raw_ids(trained, CODE[0])) < 0.7 * len(CODE[0])


def test_merges_stay_inside_pieces() -> None:
    """A word with one character before it, a digit, symbols with the line break behind them; never two of these."""
    tempting = train_tokenizer(["    return foo(12345) == bar[12345]\n" * 50], 320)
    tokens = [tempting.decode([i]) for i in range(260, len(tempting))]
    assert {" return", " foo", "   "} <= set(tokens)
    assert [token for token in tokens if re.search(r".\s+\S|.\d|\d.|\w[^\w\s]", token, re.DOTALL)] == []


def test_training_is_deterministic(trained: PreTrainedTokenizerFast) -> None:
    assert train_tokenizer(CODE, 320).backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()


@pytest.mark.parametrize("size", [0, 259])
def test_a_vocabulary_without_room_for_all_bytes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"data\.vocab_size is {size}; 260 is the least"):
        train_tokenizer(CODE, size)


def test_the_smallest_vocabulary_is_all_bytes() -> None:
    assert len(train_tokenizer(CODE, 260)) == 260


def test_the_fingerprint_survives_saving(
    trained: PreTrainedTokenizerFast, loaded: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    loaded.save_pretrained(tmp_path)
    prints = {tokenizer_fingerprint(tokenizer) for tokenizer in (trained, loaded, load_tokenizer(str(tmp_path)))}
    assert len(prints) == 1


def test_the_fingerprint_does_not_change_by_use(loaded: PreTrainedTokenizerBase) -> None:
    before = tokenizer_fingerprint(loaded)
    loaded(["a", f"{MASK_TOKEN} b"], split_special_tokens=True)
    assert tokenizer_fingerprint(loaded) == before


def test_the_fingerprint_tells_vocabularies_apart(trained: PreTrainedTokenizerFast) -> None:
    others = [train_tokenizer(CODE, 319), train_tokenizer([text.upper() for text in CODE], 320)]
    grown = train_tokenizer(CODE, 320)
    grown.add_tokens(["<|new|>"])
    assert len({tokenizer_fingerprint(tokenizer) for tokenizer in [trained, grown, *others]}) == 4


def foreign(folder: Path, *special: str, **roles: str) -> str:
    """Save a tokenizer of another project: four words, then ``special``."""
    vocabulary = {word: i for i, word in enumerate(["a", "b", "c", "[UNK]", *special])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **roles).save_pretrained(folder)
    return str(folder)


def test_a_missing_mask_becomes_the_next_free_id(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(foreign(tmp_path, "</s>", eos_token="</s>"))
    assert (tokenizer.mask_token, tokenizer.mask_token_id, len(tokenizer)) == (MASK_TOKEN, 5, 6)


def test_a_mask_that_exists_stays(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(foreign(tmp_path, "</s>", "[MASK]", eos_token="</s>", mask_token="[MASK]"))
    assert (tokenizer.mask_token, tokenizer.mask_token_id, len(tokenizer)) == ("[MASK]", 5, 6)


def test_a_mask_without_its_role_is_not_added_twice(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(foreign(tmp_path, MASK_TOKEN, "</s>", eos_token="</s>"))
    assert (tokenizer.mask_token_id, len(tokenizer)) == (4, 6)


@pytest.mark.parametrize(
    ("special", "roles", "pad"),
    [
        (["</s>"], {"eos_token": "</s>"}, "</s>"),
        (["</s>", END_OF_TEXT], {"eos_token": "</s>"}, END_OF_TEXT),
        (["</s>", END_OF_TEXT, "[PAD]"], {"eos_token": "</s>", "pad_token": "[PAD]"}, "[PAD]"),
    ],
    ids=["end of sequence", "end of text", "its own"],
)
def test_padding_is_its_own_or_an_end(tmp_path: Path, special: list[str], roles: dict[str, str], pad: str) -> None:
    assert load_tokenizer(foreign(tmp_path, *special, **roles)).pad_token == pad


@pytest.mark.parametrize(("special", "expected"), [(["</s>"], 4), (["</s>", END_OF_TEXT], 5)])
def test_documents_are_separated_by_the_end_of_text(tmp_path: Path, special: list[str], expected: int) -> None:
    assert separator_id(load_tokenizer(foreign(tmp_path, *special, eos_token="</s>"))) == expected


def test_loading_twice_gives_the_same_tokenizer(tmp_path: Path) -> None:
    """Adding the mask is no change that a cache would see."""
    once = load_tokenizer(foreign(tmp_path / "foreign", "</s>", eos_token="</s>"))
    once.save_pretrained(tmp_path / "with_mask")
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path / "with_mask"))) == tokenizer_fingerprint(once)


def test_a_tokenizer_that_ends_nothing_is_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path, "[PAD]", pad_token="[PAD]")
    with pytest.raises(ValueError, match=r"no token that ends a text; set its eos_token"):
        load_tokenizer(path)


def test_adding_special_tokens_twice_changes_nothing(trained: PreTrainedTokenizerFast) -> None:
    before = tokenizer_fingerprint(trained)
    assert tokenizer_fingerprint(with_special_tokens(trained)) == before


@pytest.mark.parametrize("content", [None, "{", "[]", '{"version": "1.0"}'], ids=["empty", "cut", "list", "wrong"])
def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"\Adata\.tokenizer is [^\n]+\Z") as error:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("path", ["/no/such/folder", "no-such-owner/no-such-model"])
def test_a_missing_tokenizer_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=rf"\Adata\.tokenizer is '{path}'[^\n]+ give a folder or [^\n]+\Z"):
        load_tokenizer(path)
