"""The cache of stores: one folder per key of everything that shaped it."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from coda.data import CorpusDataModule, HubDataset, Source, StandardLibrary, TextFiles
from coda.data.ingest import prepare
from coda.data.sources import Document, Skipped
from coda.data.store import TokenStore
from coda.data.tokenizer import train_tokenizer
from coda.files import cache_key
from tests.data.conftest import Texts
from tests.data.helpers import content, plan_of, prepared, write_jsonl

DOCUMENTS = [f"def f{i}(x):\n    return x * {i}\n" for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(DOCUMENTS, 270)


def test_the_second_opening_reads_the_cache(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    first, source = prepared([Texts(DOCUMENTS)], tokenizer, tmp_path, 0.2), Texts(DOCUMENTS)
    second = prepared([source], tokenizer, tmp_path, 0.2)
    assert source.reads == 0
    assert content(second) == content(first)


CHANGES: dict[str, Callable[[Path, dict[str, Any]], object]] = {
    "val_fraction": lambda path, given: given.update(val_fraction=0.3),
    "deduplicate": lambda path, given: given.update(deduplicate=True),
    "tokenizer": lambda path, given: given.update(tokenizer=train_tokenizer(DOCUMENTS, 269)),
    "max_tokens": lambda path, given: given.update(sources=[TextFiles([str(path)], max_tokens=10_000)]),
    "column": lambda path, given: given.update(sources=[TextFiles([str(path)], column="code")]),
    "corpus": lambda path, given: given.update(sources=[TextFiles([str(path)], corpus="other")]),
    "one more source": lambda path, given: given.update(sources=[TextFiles([str(path)]), Texts(["x"])]),
    "content": lambda path, given: write_jsonl(path, [*DOCUMENTS, "x"]),
    "content of the same size": lambda path, given: write_jsonl(path, [text.replace("x", "y") for text in DOCUMENTS]),
    "another file": lambda path, given: given.update(
        sources=[TextFiles([write_jsonl(path.with_name("b.jsonl"), DOCUMENTS)], corpus="a.jsonl")]
    ),
}


def key(given: dict[str, Any]) -> str:
    return cache_key(plan_of(**given).fingerprint())


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_shapes_the_tokens_changes_the_key(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "a.jsonl"
    given = {"sources": [TextFiles([write_jsonl(path, DOCUMENTS)])], "tokenizer": tokenizer, "val_fraction": 0.2}
    before = key(given)
    assert key(given) == before
    os.utime(path, ns=(1, 1))  # or a fast machine might write it twice in a tick of the clock
    given["sources"] = [TextFiles([str(path)])]
    before = key(given)
    CHANGES[change](path, given)
    assert key(given) != before


def test_the_order_of_the_sources_is_part_of_the_key_where_it_decides_which_copy_stays(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    sources: list[Source] = [Texts(["x"], corpus="a"), Texts(["x"], corpus="b")]
    keys = {
        key({"sources": order, "tokenizer": tokenizer, "deduplicate": deduplicate})
        for order in (sources, sources[::-1])
        for deduplicate in (False, True)
    }
    assert len(keys) == 3


@pytest.mark.parametrize("option", ["path", "name", "split", "data_files", "revision", "column"])
def test_every_option_of_a_hub_dataset_is_part_of_the_key(option: str) -> None:
    options: dict[str, Any] = {"path": "owner/corpus"}
    assert HubDataset(**{**options, option: "other"}).fingerprint() != HubDataset(**options).fingerprint()


def test_the_files_of_a_local_dataset_are_part_of_the_key(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", DOCUMENTS)
    before = HubDataset(str(tmp_path)).fingerprint()
    write_jsonl(tmp_path / "train.jsonl", DOCUMENTS[1:])
    assert HubDataset(str(tmp_path)).fingerprint() != before


@pytest.mark.parametrize("mixing", [{"weight": 2.0}, {"epochs": 3.0}], ids=["weight", "epochs"])
def test_how_a_corpus_is_mixed_keeps_the_key(tokenizer: PreTrainedTokenizerBase, mixing: dict[str, float]) -> None:
    keys = {key({"sources": [source], "tokenizer": tokenizer}) for source in (Texts(["x"]), Texts(["x"], **mixing))}
    assert len(keys) == 1


@pytest.mark.parametrize(
    "options",
    [{"sequence_length": 16}, {"global_batch_size": 2}, {"segments": True}, {"num_workers": 2}, {"seed": 7}],
    ids=lambda options: next(iter(options)),
)
def test_what_only_reads_the_tokens_keeps_the_key(tmp_path: Path, options: dict[str, Any]) -> None:
    """The cache serves any row length and batch."""
    given = {"sequence_length": 8, "global_batch_size": 1, "cache_dir": str(tmp_path), "vocab_size": 270}
    before = CorpusDataModule(sources=[Texts(DOCUMENTS)], **given).store
    again = Texts(DOCUMENTS)
    assert CorpusDataModule(sources=[again], **{**given, **options}).store.location.root == before.location.root
    assert again.reads == 0


def test_the_standard_library_of_another_python_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = StandardLibrary().fingerprint()
    monkeypatch.setattr("sys.version", "3.99")
    assert StandardLibrary().fingerprint() != before


class Failing(Texts):
    """Breaks after its documents."""

    def read(self, part: int) -> Iterator[Document | Skipped]:
        yield from super().read(part)
        raise OSError("the line went dead")

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"source": "Texts"}


@pytest.mark.parametrize("count", [0, 40, 600], ids=["at once", "mid-way", "after a batch was taken in"])
def test_after_a_failure_there_is_no_store_and_the_next_try_makes_it(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, count: int
) -> None:
    texts = [f"x = {i}" for i in range(count)]
    done = Texts(DOCUMENTS, corpus="done")
    with pytest.raises(OSError, match="the line went dead"):
        prepared([done, Failing(texts)], tokenizer, tmp_path / "a", 0.1)
    with pytest.raises(ValueError, match="is no prepared corpus"):
        TokenStore(tmp_path / "a")
    again = Texts([*texts, "the end"])
    again.fingerprint = Failing(texts).fingerprint  # type: ignore[method-assign]
    store = prepared([done, again], tokenizer, tmp_path / "a", 0.1)
    expected = prepared([done, Texts([*texts, "the end"])], tokenizer, tmp_path / "b", 0.1)
    assert content(store) == content(expected)
    assert done.reads == 2  # once for each of the two stores


class Slow(Texts):
    """Waits for a second reader, in vain."""

    def __init__(self, meeting: Any, count: Any) -> None:
        super().__init__(DOCUMENTS)
        self.meeting = meeting
        self.count = count

    def read(self, part: int) -> Iterator[Document | Skipped]:
        with self.count.get_lock():
            self.count.value += 1
        self.meeting.wait(timeout=1)
        yield from super().read(part)


def build(folder: Path, tokenizer: PreTrainedTokenizerBase, meeting: Any, count: Any) -> None:
    store = prepare(plan_of([Slow(meeting, count)], tokenizer, 0.2), folder)
    assert sum(store.stream("texts", split).documents for split in ("train", "val")) == len(DOCUMENTS)


@pytest.mark.slow
def test_of_two_processes_that_want_the_same_store_one_writes_it(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    context = multiprocessing.get_context("fork")
    meeting, count = context.Event(), context.Value("i", 0)
    processes = [context.Process(target=build, args=(tmp_path, tokenizer, meeting, count)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert count.value == 1
