"""Putting corpora together: where they are cut and which of equal documents stays, against a slow, obvious reference."""

import random
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from coda.data import TextFiles
from coda.data.ingest import _write_part, prepare
from coda.data.store import TokenStore
from coda.data.tokenizer import train_tokenizer
from tests.data.conftest import Texts
from tests.data.helpers import content, plan_of, prepared, texts_of, write_jsonl

WORDS = [f"word{i} {'x' * (i % 9)}" for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(WORDS, 280)


@pytest.fixture(autouse=True)
def _many_small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coda.data.sources.PART_BYTES", 1)
    monkeypatch.setattr("coda.data.ingest.BATCH_DOCUMENTS", 7)


def reference(
    corpora: dict[str, tuple[list[str], int | None]], tokenizer: PreTrainedTokenizerBase, deduplicate: bool
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Read document by document: what stays of each corpus, and how many repetitions it had."""
    seen: set[str] = set()
    stays: dict[str, list[str]] = {}
    repeated: dict[str, int] = {}
    for name, (texts, limit) in corpora.items():
        taken, stays[name], repeated[name] = 0, [], 0
        for text in texts:
            if limit is not None and taken >= limit:
                break
            taken += len(tokenizer(text)["input_ids"]) + 1
            if deduplicate and text in seen:
                repeated[name] += 1
            else:
                stays[name].append(text)
            seen.add(text)
    return stays, repeated


def check(store: TokenStore, stays: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase) -> None:
    """The store must hold just these documents, each split in their order."""
    for name, texts in stays.items():
        train, val = (texts_of(store, split, tokenizer, name) for split in ("train", "val"))
        held_out = set(val)
        assert not held_out & set(train)
        assert train == [text for text in texts if text not in held_out]
        assert val == [text for text in texts if text in held_out]
    store.verify()


@pytest.mark.parametrize("deduplicate", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_cuts_and_repetitions_are_those_of_the_reference(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, seed: int, deduplicate: bool
) -> None:
    draw = random.Random(seed)
    corpora, sources = {}, []
    for name in ("one", "two", "three"):
        texts = draw.choices(WORDS, k=90)
        limit = draw.choice([None, draw.randint(1, 500)])
        paths = [write_jsonl(tmp_path / f"{name}{i}.jsonl", texts[i * 30 : i * 30 + 30]) for i in range(3)]
        corpora[name] = texts, limit
        sources.append(TextFiles(paths, corpus=name, max_tokens=limit))
    stays, repeated = reference(corpora, tokenizer, deduplicate)
    if deduplicate:
        stays = {name: texts for name, texts in stays.items() if texts}
        sources = [source for source in sources if source.corpus in stays]
    store = prepared([*sources], tokenizer, tmp_path / "store", 0.2, deduplicate=deduplicate, shard_tokens=1)
    check(store, stays, tokenizer)
    counted = {name: store.manifest["corpora"][name]["skipped"].get("repeated", 0) for name in stays}
    assert counted == {name: repeated[name] for name in stays}


@pytest.mark.parametrize("limit", range(1, 60))
def test_a_corpus_is_cut_behind_the_document_that_reaches_its_limit(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, limit: int
) -> None:
    source = Texts(WORDS[:20], max_tokens=limit)
    store = prepared([source], tokenizer, tmp_path, 0.3, shard_tokens=1)
    stays, _ = reference({"texts": (WORDS[:20], limit)}, tokenizer, deduplicate=False)
    check(store, stays, tokenizer)


def test_a_limit_beyond_the_corpus_takes_all_of_it(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    limited, whole = (
        prepared([Texts(WORDS, max_tokens=limit)], tokenizer, tmp_path / str(limit), 0.1) for limit in (1 << 40, None)
    )
    assert content(limited) == content(whole)


def test_repetitions_are_looked_for_only_in_front_of_the_cut(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A document that the first corpus reads, but does not keep, is no copy of the second's."""
    sources = [Texts(["a", "b", "c"], corpus="one", max_tokens=2), Texts(["b", "a", "c"], corpus="two")]
    store = prepared([*sources], tokenizer, tmp_path, deduplicate=True)
    assert texts_of(store, "train", tokenizer, "one") == ["a"]
    assert texts_of(store, "train", tokenizer, "two") == ["b", "c"]


def test_only_equal_documents_are_repetitions(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    texts = ["x", "x ", " x", "X", "x\n", "x\r\n", "xx", "é", "e\u0301"]
    store = prepared([Texts([*texts, *texts])], tokenizer, tmp_path, deduplicate=True)
    assert texts_of(store, "train", tokenizer) == texts


def test_without_deduplication_copies_stay(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    store = prepared([Texts(["x", "x"]), Texts(["x"], corpus="again")], tokenizer, tmp_path)
    assert texts_of(store, "train", tokenizer) == ["x", "x", "x"]
    assert store.manifest["corpora"]["texts"]["skipped"] == {}


def test_a_corpus_of_nothing_but_repetitions_is_an_error(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    sources = [Texts(WORDS), Texts(WORDS[::-1], corpus="again")]
    with pytest.raises(ValueError, match=r"\Acorpus 'again' of data\.sources holds no [^\n]+\Z"):
        prepared([*sources], tokenizer, tmp_path, deduplicate=True)


def test_what_is_surplus_leaves_the_disk(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The corpus's folder holds the files that the manifest names, each with its record, and nothing else."""
    paths = [write_jsonl(tmp_path / f"{i}.jsonl", WORDS[i * 20 : i * 20 + 20] * 2) for i in range(3)]
    source = TextFiles(paths, corpus="a", max_tokens=400)
    store = prepared([source], tokenizer, tmp_path / "store", 0.1, deduplicate=True, shard_tokens=1)
    shards = store.manifest["corpora"]["a"]["shards"]
    endings = ("train.tokens", "val.tokens", "documents.npy", "json")
    assert {path.name for path in (tmp_path / "store" / "a").iterdir()} == {
        f"{shard['name']}.{ending}" for shard in shards for ending in endings
    }
    assert len(shards) > 3
    assert any(shard["name"].endswith("-kept") for shard in shards)


def test_records_behind_the_cut_are_not_counted(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """However far other processes had read: that does not change the manifest."""
    texts = [text for word in WORDS[:42] for text in (word, "")]
    paths = [write_jsonl(tmp_path / f"{i}.jsonl", texts[i * 28 : i * 28 + 28]) for i in range(3)]
    plan = plan_of([TextFiles(paths, corpus="a", max_tokens=100)], tokenizer, shard_tokens=1)
    expected = prepare(plan, tmp_path / "in order").manifest
    for number, part in enumerate(plan.sources[0].parts()):
        list(_write_part(plan, tmp_path / "ahead", 0, number, part, None, lambda tokens: None))
    assert prepare(plan, tmp_path / "ahead").manifest == expected
    assert 0 < expected["corpora"]["a"]["skipped"]["empty"] < 28
