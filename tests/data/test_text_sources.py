"""Sources that can be read: which documents they yield, and in which order."""

import argparse
import gzip
import json.decoder
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from datasets import IterableDataset

from coda.data import HubDataset, InstalledPackage, StandardLibrary, TextFiles

DOCUMENTS = ["def f():\n\treturn 'é'\n", "2\u20282 😀", "third\r\nline"]


@pytest.fixture(scope="module")
def library() -> list[Path]:
    return StandardLibrary().files()


def json_lines(texts: list[str | None], column: str = "text") -> bytes:
    records = [json.dumps({"id": i, column: text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)]
    return "\n".join(records).encode()


def parquet(path: Path, texts: list[str | None], column: str = "text") -> None:
    pq.write_table(pa.table({"id": range(len(texts)), column: texts}), path, row_group_size=2)


def zstd(content: bytes) -> bytes:
    """In two frames, as parallel compressors write them."""
    half = len(content) // 2
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (content[:half], content[half:]))


WRITERS: dict[str, Callable[[Path, list[str | None], str], object]] = {
    "corpus.jsonl": lambda path, texts, column: path.write_bytes(json_lines(texts, column)),
    "corpus.jsonl.gz": lambda path, texts, column: path.write_bytes(gzip.compress(json_lines(texts, column))),
    "corpus.jsonl.zst": lambda path, texts, column: path.write_bytes(zstd(json_lines(texts, column))),
    "corpus.parquet": parquet,
}
each_format = pytest.mark.parametrize("name", WRITERS)


def test_the_standard_library_is_a_real_corpus(library: list[Path]) -> None:
    assert len(library) > 300
    assert sum(path.stat().st_size for path in library) > 5_000_000


def test_the_standard_library_is_that_of_this_python(library: list[Path]) -> None:
    assert {Path(json.decoder.__file__), Path(argparse.__file__)} <= set(library)


def test_the_standard_library_leaves_out_tests_tables_and_installed_packages(library: list[Path]) -> None:
    root = StandardLibrary().root()
    parts = [path.relative_to(root).parts for path in library]
    folders = {folder for part in parts for folder in part[:-1]}
    assert not folders & {"test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3", "site-packages"}
    assert not [part for part in parts if part[-1].startswith(("test_", "_sysconfigdata"))]


def test_the_standard_library_is_read_in_the_same_order_every_time(library: list[Path]) -> None:
    assert StandardLibrary().files() == library == sorted(library)
    documents = StandardLibrary().documents()
    assert [next(documents) for _ in range(3)] == [path.read_text(encoding="utf-8") for path in library[:3]]


def test_an_installed_package_is_a_corpus_without_its_tests() -> None:
    files = InstalledPackage("numpy").files()
    assert len(files) > 50
    assert not [path for path in files if {"tests", "__pycache__"} & set(path.parts)]
    assert InstalledPackage("numpy").corpus == "numpy"


def test_links_to_nowhere_and_folders_called_like_files_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "odd_package"
    (package / "folder.py").mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    (package / "gone.py").symlink_to(tmp_path / "nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(InstalledPackage("odd_package").documents()) == ["x = 1\n"]


@pytest.mark.parametrize("name", ["a.py", "b.txt", "c.md"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x = 1\n\ny = 'é'\n", encoding="utf-8")
    assert list(TextFiles([str(tmp_path / name)]).documents()) == ["x = 1\n\ny = 'é'\n"]


def test_bytes_that_are_no_text_do_not_end_the_reading_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\nx = 1\n")
    assert list(TextFiles([str(tmp_path)]).documents()) == ["# caf\ufffd\nx = 1\n"]


@pytest.mark.parametrize("name", ["a.py", "b.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, name: str) -> None:
    text = "x = 1" if name == "a.py" else json.dumps({"text": "x = 1"})
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert list(TextFiles([str(tmp_path)]).documents()) == ["x = 1"]


@each_format
def test_a_record_is_one_document(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, DOCUMENTS, "text")
    assert list(TextFiles([str(tmp_path / name)]).documents()) == DOCUMENTS


@each_format
def test_another_column_can_hold_the_text(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, DOCUMENTS, "content")
    assert list(TextFiles([str(tmp_path / name)], column="content").documents()) == DOCUMENTS


@each_format
def test_records_without_text_are_left_out(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, ["a", None, "", "b"], "text")
    assert list(TextFiles([str(tmp_path / name)]).documents()) == ["a", "b"]


def test_half_a_surrogate_pair_becomes_text_that_can_be_tokenised(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83d b \\ud83d\\ude00"}\n')
    assert list(TextFiles([str(tmp_path)]).documents()) == ["a? b 😀"]


def test_a_folder_is_searched_through_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.txt", "a/deep/er/x.md", "c.jsonl", "skipped.bin", "a/skipped.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) if name == "c.jsonl" else name)
    assert list(TextFiles([str(tmp_path)]).documents()) == ["a/deep/er/x.md", "a/z.txt", "b.py", "c.jsonl"]


def test_paths_are_read_in_the_order_given(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "folder/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    source = TextFiles([str(tmp_path / "b.txt"), str(tmp_path / "folder"), str(tmp_path / "a.txt")])
    assert list(source.documents()) == ["b.txt", "folder/c.txt", "a.txt"]


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A dataset repository on disk: two splits, two columns."""
    for split, texts in (("train", ["a", "b", "", "c"]), ("test", ["d"])):
        table = pa.table({"text": texts, "code": [text.upper() for text in texts]})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["a", "b", "c"]),
        ({"split": "test"}, ["d"]),
        ({"column": "code"}, ["A", "B", "C"]),
        ({"data_files": "test.parquet"}, ["d"]),
        ({"data_files": ["test.parquet", "train.parquet"]}, ["d", "a", "b", "c"]),
    ],
    ids=["default", "split", "column", "one file", "two files"],
)
def test_a_hub_dataset_yields_what_its_options_pick(hub_folder: Path, options: dict, expected: list[str]) -> None:
    assert list(HubDataset(str(hub_folder), **options).documents()) == expected


def test_a_hub_dataset_is_streamed(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy of a corpus of terabytes on disk."""
    seen = {}

    def load_dataset(**options: object) -> IterableDataset:
        seen.update(options)
        return IterableDataset.from_generator(lambda: iter([{"text": "x"}]))

    monkeypatch.setattr("coda.data.hub.load_dataset", load_dataset)
    source = HubDataset("owner/corpus", name="python", split="all", data_files="*.json", revision="abc")
    assert list(source.documents()) == ["x"]
    assert seen == {
        "path": "owner/corpus",
        "name": "python",
        "split": "all",
        "data_files": "*.json",
        "revision": "abc",
        "streaming": True,
    }
