"""The token store's cache: one folder per key of everything that shaped it, whole or not there."""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from coda.data import CorpusDataModule, HubDataset, TextFiles, TextSource
from coda.data.store import TokenStore, open_store
from coda.data.tokenizer import train_tokenizer
from tests.data.conftest import Texts

DOCUMENTS = [f"def f{i}(x):\n    return x * {i}\n" for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(DOCUMENTS, 270)


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "code": f"{text}."}) + "\n" for text in texts))
    return path


def test_the_second_opening_reads_the_cache(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    first, source = open_store([Texts(DOCUMENTS)], tokenizer, 0.2, tmp_path), Texts(DOCUMENTS)
    second = open_store([source], tokenizer, 0.2, tmp_path)
    assert source.reads == 0
    assert second.folder == first.folder
    assert second.tokens("train").tolist() == first.tokens("train").tolist()


CHANGES: dict[str, Callable[[Path, dict[str, Any]], object]] = {
    "val_fraction": lambda path, given: given.update(val_fraction=0.3),
    "tokenizer": lambda path, given: given.update(tokenizer=train_tokenizer(DOCUMENTS, 269)),
    "max_tokens": lambda path, given: given.update(sources=[TextFiles([str(path)], max_tokens=10_000)]),
    "column": lambda path, given: given.update(sources=[TextFiles([str(path)], column="code")]),
    "one more source": lambda path, given: given.update(sources=[TextFiles([str(path)]), Texts(["x"])]),
    "content": lambda path, given: write(path, [*DOCUMENTS, "x"]),
    "content of the same size": lambda path, given: write(path, [text.replace("x", "y") for text in DOCUMENTS]),
    "another file": lambda path, given: given.update(
        sources=[TextFiles([str(write(path.with_name("b.jsonl"), DOCUMENTS))])]
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_shapes_the_tokens_changes_the_key(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, change: str
) -> None:
    path = write(tmp_path / "a.jsonl", DOCUMENTS)
    given = {"sources": [TextFiles([str(path)])], "tokenizer": tokenizer, "val_fraction": 0.2, "cache": tmp_path}
    before = open_store(**given).folder
    CHANGES[change](path, given)
    assert open_store(**given).folder != before


def test_the_order_of_the_sources_is_part_of_the_key(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    sources: list[TextSource] = [Texts(["x"]), Texts(["y"])]
    one, other = (open_store(order, tokenizer, 0.0, tmp_path) for order in (sources, sources[::-1]))
    assert one.folder != other.folder


@pytest.mark.parametrize("option", ["path", "name", "split", "data_files", "revision", "column"])
def test_every_option_of_a_hub_dataset_is_part_of_the_key(option: str) -> None:
    options: dict[str, Any] = {"path": "owner/corpus"}
    assert HubDataset(**{**options, option: "other"}).fingerprint() != HubDataset(**options).fingerprint()


def test_the_files_of_a_local_dataset_are_part_of_the_key(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", DOCUMENTS)
    before = HubDataset(str(tmp_path)).fingerprint()
    write(tmp_path / "train.jsonl", DOCUMENTS[1:])
    assert HubDataset(str(tmp_path)).fingerprint() != before


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
    assert CorpusDataModule(sources=[again], **{**given, **options}).store.folder == before.folder
    assert again.reads == 0


class Failing(Texts):
    """Breaks after its documents."""

    def documents(self) -> Iterator[str]:
        yield from super().documents()
        raise OSError("the line went dead")


@pytest.mark.parametrize("count", [0, 40, 600], ids=["at once", "mid-way", "after a batch was written"])
def test_a_source_that_fails_leaves_nothing_behind(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, count: int
) -> None:
    texts = [f"x = {i}" for i in range(count)]
    with pytest.raises(OSError, match="the line went dead"):
        open_store([Failing(texts)], tokenizer, 0.1, tmp_path)
    assert list((tmp_path / "corpora").iterdir()) == []


def test_after_a_failure_the_corpus_is_read_again(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the line went dead"):
        open_store([Failing(DOCUMENTS)], tokenizer, 0.0, tmp_path)
    assert len(open_store([Texts(DOCUMENTS)], tokenizer, 0.0, tmp_path).ends("train")) == len(DOCUMENTS)


class Overtaken(Texts):
    """While it is read, someone else finishes a store of the same key."""

    def __init__(self, meanwhile: Callable[[], TokenStore]) -> None:
        super().__init__(DOCUMENTS)
        self.meanwhile = meanwhile

    def documents(self) -> Iterator[str]:
        yield from super().documents()
        self.faster = self.meanwhile()


def test_a_build_that_is_overtaken_takes_the_finished_store(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    source = Overtaken(lambda: open_store([Texts(DOCUMENTS)], tokenizer, 0.2, tmp_path))
    store = open_store([source], tokenizer, 0.2, tmp_path)
    assert store.folder == source.faster.folder
    assert list((tmp_path / "corpora").iterdir()) == [store.folder]
    assert store.manifest == source.faster.manifest


class Meeting(Texts):
    """Waits at its first document until all processes read it."""

    def __init__(self, barrier: Barrier) -> None:
        super().__init__(DOCUMENTS)
        self.barrier = barrier

    def documents(self) -> Iterator[str]:
        self.barrier.wait(timeout=20)
        yield from super().documents()


def build(cache: Path, tokenizer: PreTrainedTokenizerBase, barrier: Barrier) -> None:
    store = open_store([Meeting(barrier)], tokenizer, 0.2, cache)
    assert len(store.ends("train")) + len(store.ends("val")) == len(DOCUMENTS)


def test_two_processes_may_build_the_same_store_at_once(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=build, args=(tmp_path, tokenizer, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list((tmp_path / "corpora").iterdir())) == 1
