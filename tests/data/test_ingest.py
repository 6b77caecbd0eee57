"""Preparing: the same store by any number of processes, and by any number of attempts."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from coda.data import Source, TextFiles
from coda.data.ingest import _write_part, prepare
from coda.data.plan import Plan
from coda.data.store import TokenStore
from coda.data.tokenizer import train_tokenizer
from tests.data.conftest import Texts
from tests.data.flaky import Flaky
from tests.data.helpers import content, plan_of, prepared, texts_of, write_jsonl

DOCUMENTS = [f"def f{i}(x):\n    return x * {i}\n" + "    # more\n" * (i % 5) for i in range(700)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(DOCUMENTS, 300)


@pytest.fixture(autouse=True)
def _a_part_per_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coda.data.sources.PART_BYTES", 1)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a store, locks and tokenizer aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and path.parent.name != "tokenizer"
    }


def three_sources(folder: Path) -> list[Source]:
    """One of many parts and two shards in each, one that is cut in its third part, and one of repetitions."""
    first = [write_jsonl(folder / f"first/{i}.jsonl", [f"{i} {text}" for text in DOCUMENTS[:300]]) for i in range(5)]
    second = [write_jsonl(folder / f"second/{i}.jsonl", DOCUMENTS[i * 100 : i * 100 + 100]) for i in range(7)]
    third = write_jsonl(folder / "third.jsonl", [*DOCUMENTS[:200], "new", f"0 {DOCUMENTS[7]}", "new"])
    return [
        TextFiles(first, corpus="first"),
        TextFiles(second, corpus="second", max_tokens=5_000),
        TextFiles([third], corpus="third"),
    ]


@pytest.fixture(scope="module")
def in_one_process(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coda.data.sources.PART_BYTES", 1)
        plan = plan_of(three_sources(folder), tokenizer, 0.1, deduplicate=True, shard_tokens=500)
        prepare(plan, folder / "store")
    return plan, folder / "store"


def test_parts_and_shards_are_where_the_other_tests_need_them(in_one_process: tuple[Plan, Path]) -> None:
    corpora = TokenStore(in_one_process[1]).manifest["corpora"]
    names = {corpus: [shard["name"] for shard in corpora[corpus]["shards"]] for corpus in corpora}
    assert names == {
        "first": [f"{part:05}-{piece:05}" for part in range(5) for piece in range(2)],
        "second": ["00000-00000", "00001-00000", "00002-00000-kept"],
        "third": ["00000-00000-kept"],
    }
    assert corpora["third"]["skipped"]["repeated"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_writes_the_same_files(
    in_one_process: tuple[Plan, Path], tmp_path: Path, processes: int
) -> None:
    plan, expected = in_one_process
    prepare(plan, tmp_path / "store", processes)
    ours, theirs = files_of(tmp_path / "store"), files_of(expected)
    for files in (ours, theirs):  # its record tells how far the original was read
        files.pop("second/00002-00000-kept.json")
    assert ours == theirs


def test_a_run_goes_on_behind_the_last_shard_of_a_part(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A part of three shards, of which one was finished: the others are written, the first stays as it is."""
    plan = plan_of([TextFiles([write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)])], tokenizer, 0.1, shard_tokens=1)
    whole = prepare(plan, tmp_path / "whole")
    assert [shard["name"] for shard in whole.manifest["corpora"]["a.jsonl"]["shards"]] == [
        "00000-00000", "00000-00001", "00000-00002",
    ]  # fmt: skip
    folder = tmp_path / "again"
    next(_write_part(plan, folder, 0, 0, plan.sources[0].parts()[0], None, lambda tokens: None))
    first = folder / "a.jsonl" / "00000-00000.json"
    before = first.stat().st_mtime_ns
    assert content(prepare(plan, folder)) == content(whole)
    assert files_of(folder) == files_of(tmp_path / "whole")
    assert first.stat().st_mtime_ns == before


def test_shards_of_another_size_go_on_from_those_that_are_there(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The size shapes files, not tokens."""
    source = TextFiles([write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)])
    small, large = (plan_of([source], tokenizer, 0.1, shard_tokens=size) for size in (1, 1 << 20))
    next(_write_part(small, tmp_path / "store", 0, 0, source.parts()[0], None, lambda tokens: None))
    assert content(prepare(large, tmp_path / "store")) == content(prepare(large, tmp_path / "whole"))


def test_a_shard_without_its_record_does_not_count(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    sources: list[Source] = [TextFiles([write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)])]
    whole = prepared(sources, tokenizer, tmp_path / "whole", 0.1)
    folder = tmp_path / "store" / "a.jsonl"
    folder.mkdir(parents=True)
    for name in ("00000-00000.train.tokens", "00000-00000.documents.npy", ".00000-00000.json.k9x", ".00000-00001.x"):
        (folder / name).write_bytes(b"half of")
    assert content(prepared(sources, tokenizer, tmp_path / "store", 0.1)) == content(whole)
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


def test_files_of_others_in_the_folder_stay(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Someone may prepare a corpus beside the very files that it is made of."""
    path = Path(write_jsonl(tmp_path / "code" / "00000-00000", DOCUMENTS)).rename(tmp_path / "code" / "a.jsonl")
    prepared([TextFiles([str(path)], corpus="code")], tokenizer, tmp_path)
    assert path.is_file()


def test_a_part_begun_and_then_not_needed_is_left_out(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Of several processes one may be killed in the middle of a part that, in the end, is behind ``max_tokens``."""
    paths = [write_jsonl(tmp_path / f"{i}.jsonl", DOCUMENTS[i * 300 : i * 300 + 300]) for i in range(2)]
    enough = prepared([TextFiles(paths[:1])], tokenizer, tmp_path / "first").tokens("train") + 50
    plan = plan_of([TextFiles([*paths, *paths], corpus="a", max_tokens=enough)], tokenizer, shard_tokens=1)
    expected = prepare(plan, tmp_path / "whole")
    folder, parts = tmp_path / "store", plan.sources[0].parts()
    next(_write_part(plan, folder, 0, 2, parts[2], None, lambda tokens: None))
    list(_write_part(plan, folder, 0, 3, parts[3], None, lambda tokens: None))
    assert content(prepare(plan, folder)) == content(expected)
    assert files_of(folder) == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"val_fraction": 0.2}, "val_fraction"),
        ({"deduplicate": True}, "deduplicate"),
        ({"sources": [Texts(DOCUMENTS[:9])]}, "sources"),
        ({"sources": [Texts(DOCUMENTS, max_tokens=9)]}, "sources"),
        ({"tokenizer": train_tokenizer(DOCUMENTS, 270)}, "tokenizer"),
    ],
    ids=["val_fraction", "deduplicate", "sources", "max_tokens", "tokenizer"],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_other_settings_is_refused_and_stays(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, change: dict, named: str, finished: bool
) -> None:
    given = {"sources": [Texts(DOCUMENTS)], "tokenizer": tokenizer, "val_fraction": 0.1}
    prepared(**given, folder=tmp_path)
    if not finished:
        (tmp_path / "manifest.json").unlink()
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match=rf"\A{tmp_path} was begun with other settings: {named}; [^\n]+\Z"):
        prepared(**{**given, **change}, folder=tmp_path)
    assert files_of(tmp_path) == before


@pytest.fixture
def expected(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> TokenStore:
    """What six parts of a corpus that never fails give."""
    (tmp_path / "calm").mkdir()
    return prepared([Flaky(tmp_path / "calm", 6)], tokenizer, tmp_path / "expected", shard_tokens=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "processes", "message"),
    [
        ("raise", 1, r"\Apart 4 is broken\Z"),
        ("raise", 2, r"\Apart 4 is broken\Z"),
        ("die", 2, r"\Aone of 2 processes was killed, [^\n]*run the same command again[^\n]*\Z"),
    ],
)
def test_after_a_failure_the_same_again_goes_on(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, expected: TokenStore, how: str, processes: int, message: str
) -> None:
    source, output = Flaky(tmp_path, 6), tmp_path / "store"
    (tmp_path / how).write_text("4")
    with pytest.raises(ValueError, match=message):
        prepared([source], tokenizer, output, processes=processes, shard_tokens=1)
    assert not (output / "manifest.json").exists()
    assert {0, 4} <= set(source.begun())
    finished = {int(path.name[:5]) for path in output.glob("flaky/*.json") if '"last": true' in path.read_text()}
    assert 4 not in finished
    (tmp_path / how).unlink()
    store = prepared([source], tokenizer, output, processes=processes, shard_tokens=1)
    assert source.begun() == sorted(set(range(6)) - finished)
    assert content(store) == content(expected)
    assert texts_of(store, "train", tokenizer) == [
        f"part {part}, document {i}" for part in range(6) for i in range(300) if i % 50
    ]


@pytest.mark.slow
def test_processes_do_not_run_ahead_of_what_is_needed(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The first part has enough tokens, but that shows only at its end: two parts per process may have been begun."""
    source = Flaky(tmp_path, 40, seconds=1.5, max_tokens=100)
    store = prepared([source], tokenizer, tmp_path / "store", processes=2)
    assert len(source.begun()) <= 6
    assert len(store.manifest["corpora"]["flaky"]["shards"]) == 1


def test_what_is_enough_is_not_read_on(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    source = Flaky(tmp_path, 40, max_tokens=100)
    prepared([source], tokenizer, tmp_path / "store")
    assert source.begun() == [0]
    (record,) = (tmp_path / "store" / "flaky").glob("*.json")
    assert json.loads(record.read_text())["records"] == 256  # one batch


@pytest.mark.parametrize("count", [1, 252, 253, 254, 256, 257, 512])
def test_documents_around_the_size_of_a_batch_are_all_there(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, count: int
) -> None:
    texts = [f"x{i}" for i in range(count)]
    store = prepared([Texts([*texts, "", "", ""]), Texts(["y"], corpus="y")], tokenizer, tmp_path, shard_tokens=1)
    assert texts_of(store, "train", tokenizer) == [*texts, "y"]
    assert store.manifest["corpora"]["texts"]["skipped"] == {"empty": 3}


@pytest.mark.parametrize("size", [1, 100, 5_000])
def test_a_batch_is_bounded_by_its_characters_too(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("coda.data.ingest.BATCH_CHARACTERS", size)
    store = prepared([Texts(DOCUMENTS[:60])], tokenizer, tmp_path, shard_tokens=1)
    assert texts_of(store, "train", tokenizer) == DOCUMENTS[:60]
    # A shard ends with a batch, which is the shortest run of documents with so many characters.
    characters = [0]
    for text in DOCUMENTS[:60]:
        characters[-1] += len(text)
        if characters[-1] >= size:
            characters.append(0)
    expected = len([count for count in characters if count])
    assert len(store.manifest["corpora"]["texts"]["shards"]) == expected


def test_the_counts_of_skipped_records_hold_where_no_document_is_left(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A whole part of bad lines, in the middle."""
    good = [write_jsonl(tmp_path / f"{i}.jsonl", DOCUMENTS[:10]) for i in (0, 2)]
    (tmp_path / "1.jsonl").write_text('nonsense\n{"code": "x"}\n{"text": 5}\n{"text": " "}\n[]\n')
    source = TextFiles([good[0], str(tmp_path / "1.jsonl"), good[1]], corpus="a", on_error="skip")
    described = prepared([source], tokenizer, tmp_path / "store").manifest["corpora"]["a"]
    assert described["skipped"] == {"malformed": 1, "no column": 1, "no text": 1, "empty": 1, "no object": 1}
    assert described["documents"] == {"train": 20, "val": 0}
