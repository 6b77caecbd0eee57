"""The token store: what it holds."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from coda.data import TextFiles
from coda.data.store import TokenStore, TokenStream
from coda.data.tokenizer import separator_id, train_tokenizer
from tests.data.conftest import Texts
from tests.data.helpers import documents_of, prepared, texts_of, write_jsonl

DOCUMENTS = [f"def f{i}(x):\n    return x * {i}\n" + "    # more\n" * (i % 5) for i in range(600)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(DOCUMENTS, 300)


@pytest.fixture(scope="module")
def store(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """All documents in two sources, a quarter of them held out."""
    sources = [Texts(DOCUMENTS[:250], corpus="first"), Texts(DOCUMENTS[250:], corpus="second")]
    return prepared(sources, tokenizer, tmp_path_factory.mktemp("store"), 0.25)


def test_tokens_are_documents_and_separators_in_order(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    store = prepared([Texts(DOCUMENTS)], tokenizer, tmp_path)
    rows = [[*tokenizer(text)["input_ids"], separator_id(tokenizer)] for text in DOCUMENTS]
    stream = store.stream("texts", "train")
    assert stream.read(0, stream.tokens).tolist() == [token for row in rows for token in row]
    assert stream.lengths().tolist() == [len(row) for row in rows]
    assert (stream.tokens, stream.documents) == (sum(map(len, rows)), len(rows))
    assert (stream.read(0, 3).dtype, stream.lengths().dtype) == (np.uint32, np.int64)


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
    store = prepared([Texts([f"x{i}" for i in range(count)])], tokenizer, tmp_path, fraction)
    held_out = store.stream("texts", "val").documents
    assert abs(held_out - count * fraction) <= 5 * (count * fraction * (1 - fraction)) ** 0.5


def test_copies_of_a_document_are_on_one_side(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    copies = [*DOCUMENTS[:100], *reversed(DOCUMENTS[:100]), *DOCUMENTS[:100:3]]
    store = prepared([Texts(copies[:150], corpus="a"), Texts(copies[150:], corpus="b")], tokenizer, tmp_path, 0.5)
    train, val = (set(texts_of(store, split, tokenizer)) for split in ("train", "val"))
    assert min(len(train), len(val)) > 20
    assert not train & val


def test_a_larger_share_keeps_what_was_held_out(
    store: TokenStore, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    larger = prepared([Texts(DOCUMENTS)], tokenizer, tmp_path, 0.4)
    assert set(texts_of(store, "val", tokenizer)) < set(texts_of(larger, "val", tokenizer))


def test_the_split_does_not_depend_on_the_company(
    store: TokenStore, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    alone = prepared([Texts(DOCUMENTS[:50])], tokenizer, tmp_path, 0.25)
    expected = [text for text in texts_of(store, "val", tokenizer) if text in DOCUMENTS[:50]]
    assert texts_of(alone, "val", tokenizer) == expected


def test_special_tokens_in_a_document_are_text(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Or a corpus that talks of masked diffusion would be full of masks."""
    texts = ["x = '<|mask|>'", "<|endoftext|>", "<|im_start|>user<|im_end|>"]
    (tmp_path / "a.txt").write_text(texts[0])
    sources = [TextFiles([str(tmp_path / "a.txt")]), Texts(texts[1:])]
    store = prepared(sources, tokenizer, tmp_path / "store")
    assert texts_of(store, "train", tokenizer) == texts
    written = [token for document in documents_of(store, "train") for token in document]
    special = set(tokenizer.all_special_ids)
    assert [token for token in written if token in special] == [separator_id(tokenizer)] * 3


@pytest.mark.parametrize("blank", ["", " \n\t\r\n", "\u3000"])
def test_blank_documents_are_left_out(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, blank: str) -> None:
    store = prepared([Texts([blank, "x", blank, "y"])], tokenizer, tmp_path)
    assert texts_of(store, "train", tokenizer) == ["x", "y"]
    assert store.manifest["corpora"]["texts"]["skipped"] == {"empty": 2}


@pytest.mark.parametrize("limit", [1, 500, 10_000])
def test_a_source_is_read_in_whole_documents_until_it_has_enough(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, limit: int
) -> None:
    """10,000 tokens are beyond one batch of the tokenizer."""
    store = prepared([Texts(DOCUMENTS, max_tokens=limit)], tokenizer, tmp_path)
    ends = [0, *store.stream("texts", "train").lengths().cumsum()]
    assert texts_of(store, "train", tokenizer) == DOCUMENTS[: len(ends) - 1]
    assert ends[-2] < limit <= ends[-1]


def test_every_source_has_a_limit_of_its_own(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    given = [(["a", "b", "c"], 3), (["d", "e"], 1), (["f", "g"], None)]
    sources = [Texts(texts, max_tokens=limit, corpus=texts[0]) for texts, limit in given]
    store = prepared(sources, tokenizer, tmp_path)
    assert texts_of(store, "train", tokenizer) == ["a", "b", "d", "f", "g"]


def test_the_unigram_entropy_is_that_of_all_tokens(store: TokenStore) -> None:
    documents = documents_of(store, "train") + documents_of(store, "val")
    counts = Counter(token for document in documents for token in document)
    total = sum(counts.values())
    expected = -sum(count / total * np.log(count / total) for count in counts.values())
    assert store.unigram_entropy == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_manifest_counts_tokens_and_documents(store: TokenStore, split: str) -> None:
    for corpus in store.corpora():
        documents = documents_of(store, split, corpus)
        described = store.manifest["corpora"][corpus]
        assert described["documents"][split] == len(documents) > 0
        assert described["tokens"][split] == sum(map(len, documents))
    assert store.tokens(split) == sum(map(len, documents_of(store, split)))


def test_a_split_of_nothing_can_be_read(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    stream = prepared([Texts(["x"])], tokenizer, tmp_path).stream("texts", "val")
    assert (stream.tokens, stream.documents) == (0, 0)
    assert (len(stream.read(0, 0)), len(stream.lengths()), len(stream.document_of(0, 0))) == (0, 0, 0)


def test_tokens_are_read_only_views_of_the_file(store: TokenStore) -> None:
    with pytest.raises(ValueError, match="read-only"):
        store.stream("first", "train").read(0, 5)[0] = 0


@pytest.mark.parametrize("texts", [[], ["", " \n"]], ids=["no documents", "blank documents"])
def test_a_corpus_without_text_is_an_error(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, texts: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"corpus 'texts' of data\.sources holds no text"):
        prepared([Texts(DOCUMENTS, corpus="full"), Texts(texts)], tokenizer, tmp_path, 0.1)
    with pytest.raises(ValueError, match=r"is no prepared corpus"):
        TokenStore(tmp_path)


def test_a_pickled_stream_is_a_path_not_a_copy_of_the_tokens(store: TokenStore) -> None:
    """What a reading process is sent when it is spawned."""
    stream = store.stream("second", "train")
    tokens = stream.read(0, stream.tokens)
    assert tokens.nbytes > 10_000
    sent = pickle.dumps(stream)
    assert len(sent) < 2_000
    assert np.array_equal(pickle.loads(sent).read(0, stream.tokens), tokens)


@pytest.fixture(scope="module")
def pieces(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenStream, list]:
    """A stream of many shards, some of them without a held-out document, and the documents it must have."""
    folder = tmp_path_factory.mktemp("pieces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coda.data.ingest.BATCH_DOCUMENTS", 7)
        source = TextFiles([write_jsonl(folder / "a.jsonl", DOCUMENTS[:120])])
        store = prepared([source], tokenizer, folder / "store", 0.1, shard_tokens=1)
    assert len(store.manifest["corpora"]["a.jsonl"]["shards"]) == 18
    stream = store.stream("a.jsonl", "val")
    assert 0 in [shard["documents"]["val"] for shard in stream.shards]
    held_out = set(texts_of(store, "val", tokenizer))
    kept = [text for text in DOCUMENTS[:120] if text in held_out]
    return stream, [[*tokenizer(text)["input_ids"], separator_id(tokenizer)] for text in kept]


def test_any_span_can_be_read_across_shards(pieces: tuple[TokenStream, list[list[int]]]) -> None:
    stream, documents = pieces
    flat = [token for document in documents for token in document]
    belongs = [i for i, document in enumerate(documents) for _ in document]
    assert stream.tokens == len(flat)
    for start in range(0, len(flat), 5):
        for stop in {start, start + 1, min(start + 40, len(flat)), len(flat)}:
            assert stream.read(start, stop).tolist() == flat[start:stop]
            assert stream.document_of(start, stop).tolist() == belongs[start:stop]


def test_any_document_can_be_read(pieces: tuple[TokenStream, list[list[int]]]) -> None:
    stream, documents = pieces
    assert stream.documents == len(documents) > 5
    for i, document in enumerate(documents):
        tokens, prompt = stream.document(i)
        assert (tokens.tolist(), prompt) == (document, 0)
