"""The token store: what it holds."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from coda.data import TextFiles
from coda.data.store import TokenStore, open_store
from coda.data.tokenizer import separator_id, train_tokenizer
from tests.data.conftest import Texts

DOCUMENTS = [f"def f{i}(x):\n    return x * {i}\n" + "    # more\n" * (i % 5) for i in range(600)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(DOCUMENTS, 300)


@pytest.fixture(scope="module")
def store(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """All documents in two sources, a quarter of them held out."""
    sources = [Texts(DOCUMENTS[:250]), Texts(DOCUMENTS[250:])]
    return open_store(sources, tokenizer, 0.25, tmp_path_factory.mktemp("store"))


def texts_of(store: TokenStore, split: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Cut a split at its ends and decode; the separators must be where the ends say."""
    documents = np.split(store.tokens(split), store.ends(split))
    assert len(documents.pop()) == 0
    assert all(document[-1] == separator_id(tokenizer) for document in documents)
    return [tokenizer.decode(document[:-1]) for document in documents]


def test_tokens_are_documents_and_separators_in_order(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    store = open_store([Texts(DOCUMENTS)], tokenizer, 0.0, tmp_path)
    rows = [[*tokenizer(text)["input_ids"], separator_id(tokenizer)] for text in DOCUMENTS]
    assert store.tokens("train").tolist() == [token for row in rows for token in row]
    assert store.ends("train").tolist() == np.cumsum([len(row) for row in rows]).tolist()
    assert (store.tokens("train").dtype, store.ends("train").dtype) == (np.uint32, np.int64)


def test_both_splits_keep_the_order_of_the_sources(store: TokenStore, tokenizer: PreTrainedTokenizerBase) -> None:
    for split in ("train", "val"):
        texts = texts_of(store, split, tokenizer)
        assert texts == [text for text in DOCUMENTS if text in set(texts)]


def test_every_document_is_in_exactly_one_split(store: TokenStore, tokenizer: PreTrainedTokenizerBase) -> None:
    assert Counter(texts_of(store, "train", tokenizer) + texts_of(store, "val", tokenizer)) == Counter(DOCUMENTS)


@pytest.mark.parametrize("fraction", [0.02, 0.25, 0.6])
def test_the_held_out_share_is_as_asked_for(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, fraction: float
) -> None:
    """Within 5 sigma of a binomial."""
    count = 4_000
    store = open_store([Texts([f"x{i}" for i in range(count)])], tokenizer, fraction, tmp_path)
    held_out = len(store.ends("val"))
    assert abs(held_out - count * fraction) <= 5 * (count * fraction * (1 - fraction)) ** 0.5


def test_copies_of_a_document_are_on_one_side(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    copies = [*DOCUMENTS[:100], *reversed(DOCUMENTS[:100]), *DOCUMENTS[:100:3]]
    store = open_store([Texts(copies[:150]), Texts(copies[150:])], tokenizer, 0.5, tmp_path)
    train, val = (set(texts_of(store, split, tokenizer)) for split in ("train", "val"))
    assert min(len(train), len(val)) > 20
    assert not train & val


def test_a_larger_share_keeps_what_was_held_out(
    store: TokenStore, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    larger = open_store([Texts(DOCUMENTS)], tokenizer, 0.4, tmp_path)
    assert set(texts_of(store, "val", tokenizer)) < set(texts_of(larger, "val", tokenizer))


def test_the_split_does_not_depend_on_the_company(
    store: TokenStore, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    alone = open_store([Texts(DOCUMENTS[:50])], tokenizer, 0.25, tmp_path)
    expected = [text for text in texts_of(store, "val", tokenizer) if text in DOCUMENTS[:50]]
    assert texts_of(alone, "val", tokenizer) == expected


def test_special_tokens_in_a_document_are_text(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Or a corpus that talks of masked diffusion would be full of masks."""
    texts = ["x = '<|mask|>'", "<|endoftext|>", "<|im_start|>user<|im_end|>"]
    (tmp_path / "a.txt").write_text(texts[0])
    store = open_store([TextFiles([str(tmp_path / "a.txt")]), Texts(texts[1:])], tokenizer, 0.0, tmp_path)
    tokens = store.tokens("train")
    assert (tokens != tokenizer.mask_token_id).all()
    assert (tokens == separator_id(tokenizer)).sum() == len(texts)
    assert texts_of(store, "train", tokenizer) == texts


@pytest.mark.parametrize("blank", ["", " \n\t\r\n", "\u3000"])
def test_blank_documents_are_left_out(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, blank: str) -> None:
    store = open_store([Texts([blank, "x", blank, "y"])], tokenizer, 0.0, tmp_path)
    assert texts_of(store, "train", tokenizer) == ["x", "y"]


@pytest.mark.parametrize("limit", [1, 500, 10_000])
def test_a_source_is_read_in_whole_documents_until_it_has_enough(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, limit: int
) -> None:
    """10,000 tokens are beyond one batch of the tokenizer."""
    store = open_store([Texts(DOCUMENTS, limit)], tokenizer, 0.0, tmp_path)
    ends = [0, *store.ends("train")]
    assert texts_of(store, "train", tokenizer) == DOCUMENTS[: len(ends) - 1]
    assert ends[-2] < limit <= ends[-1]


def test_every_source_has_a_limit_of_its_own(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    sources = [Texts(["a", "b", "c"], 3), Texts(["d", "e"], 1), Texts(["f", "g"])]
    store = open_store(sources, tokenizer, 0.0, tmp_path)
    assert texts_of(store, "train", tokenizer) == ["a", "b", "d", "f", "g"]


def test_the_unigram_entropy_is_that_of_all_tokens(store: TokenStore) -> None:
    counts = Counter(np.concatenate([store.tokens("train"), store.tokens("val")]).tolist())
    total = sum(counts.values())
    expected = -sum(count / total * np.log(count / total) for count in counts.values())
    assert store.unigram_entropy == pytest.approx(expected, rel=1e-12)


def test_the_manifest_counts_tokens_and_documents(store: TokenStore) -> None:
    for split in ("train", "val"):
        assert store.manifest["tokens"][split] == len(store.tokens(split)) > 0
        assert store.manifest["documents"][split] == len(store.ends(split)) > 0


def test_a_split_of_nothing_can_be_read(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    store = open_store([Texts(["x"])], tokenizer, 0.0, tmp_path)
    assert (len(store.tokens("val")), len(store.ends("val"))) == (0, 0)


def test_tokens_are_read_only_views_of_the_file(store: TokenStore) -> None:
    with pytest.raises(ValueError, match="read-only"):
        store.tokens("train")[0] = 0


@pytest.mark.parametrize("texts", [[], ["", " \n"]], ids=["no documents", "blank documents"])
def test_a_corpus_without_text_is_an_error(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, texts: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"data\.sources hold no text"):
        open_store([Texts(texts)], tokenizer, 0.1, tmp_path)
    assert list((tmp_path / "corpora").iterdir()) == []


def test_a_pickled_store_is_a_path_not_a_copy_of_the_tokens(store: TokenStore) -> None:
    """What a reading process is sent when it is spawned."""
    assert store.tokens("train").nbytes > 10_000
    sent = pickle.dumps(store)
    assert len(sent) < 1_000
    assert np.array_equal(pickle.loads(sent).tokens("train"), store.tokens("train"))
