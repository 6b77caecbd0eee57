"""Sources that cannot be read: one sentence that names the setting or file and the way out."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from coda.data import HubDataset, InstalledPackage, Source, StandardLibrary, TextFiles


def assert_error(source: Source, *parts: str) -> None:
    """Read all documents, which must fail with one line that says all ``parts``."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        list(source.documents())
    assert not [part for part in parts if part not in str(error.value)], error.value


def damaged_pages(path: Path) -> None:
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(5000)]}), path)
    content = bytearray(path.read_bytes())
    for i in range(10, len(content) // 2):  # the footer at the end stays whole
        content[i] ^= 0x5A
    path.write_bytes(content)


def cut_short(path: Path, compress: Callable[[bytes], bytes] = gzip.compress) -> None:
    content = compress(b"".join(b'{"text": "%d"}\n' % i for i in range(5000)))
    path.write_bytes(content[: len(content) // 2])


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "gone")
    assert_error(TextFiles([path]), "TextFiles.paths", path, "give a file or a folder")


@pytest.mark.parametrize("url", ["nosuchprotocol://bucket/a.jsonl", "file:///no/such/folder"])
def test_a_url_that_cannot_be_opened_is_named(url: str) -> None:
    assert_error(TextFiles([url]), "TextFiles.paths", url)


@pytest.mark.parametrize("package", ["no_such_package", "no_such.package", "json.decoder", ""])
def test_a_package_that_is_not_installed_is_named(package: str) -> None:
    assert_error(InstalledPackage(package), f"InstalledPackage.package is {package!r}", "install it")


def test_an_unknown_format_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    assert_error(TextFiles([str(tmp_path / "a.docx")]), "a.docx", ".py", ".txt", ".md", ".jsonl.gz", ".parquet")


@pytest.mark.parametrize("paths", [[], ["empty"]], ids=["no paths", "empty folder"])
def test_no_file_at_all_is_an_error(tmp_path: Path, paths: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert_error(TextFiles([str(tmp_path / path) for path in paths]), "TextFiles.paths", "holds no file")


BROKEN = {
    "cut short": b'{"text": "b"',
    "no JSON": b"nonsense",
    "two records": b'{"text": "b"} {}',
    "not UTF-8": b'{"text": "caf\xe9"}',
    "a number too long": b'{"text": "b", "id": ' + b"1" * 5000 + b"}",
    "brackets without end": b"[" * 100_000,
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_malformed_json_is_named_by_line(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + broken + b'\n{"text": "c"}\n')
    assert_error(TextFiles([str(path)]), f"{path}, line 3,", "JSON", "on_error to skip")


@pytest.mark.parametrize("value", [5, ["a"], {"a": "b"}, True])
def test_a_json_value_that_is_no_text_is_named_by_line(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": value}))
    assert_error(TextFiles([str(path)]), f"{path}, line 2,", "'text'", type(value).__name__)


def test_json_that_is_no_object_is_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('["text"]\n')
    assert_error(TextFiles([str(tmp_path)]), "a.jsonl, line 1,", "list")


def test_a_missing_json_column_names_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "a", "id": 1}\n')
    assert_error(TextFiles([str(tmp_path)], column="code"), "a.jsonl, line 1,", "'code'", "['content', 'id']")


def test_a_missing_parquet_column_names_those_that_exist(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"], "id": [1]}), tmp_path / "a.parquet")
    assert_error(TextFiles([str(tmp_path)]), "a.parquet", "'text'", "['content', 'id']")


def test_a_parquet_column_without_text_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    assert_error(TextFiles([str(tmp_path)]), "a.parquet", "'text'", "int")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("no.parquet", lambda path: path.write_text("no parquet at all")),
        ("empty.parquet", lambda path: path.write_bytes(b"")),
        ("pages.parquet", damaged_pages),
        ("no.jsonl.gz", lambda path: path.write_text('{"text": "not compressed"}')),
        ("short.jsonl.gz", cut_short),
        ("no.jsonl.zst", lambda path: path.write_text('{"text": "not compressed"}')),
        ("short.jsonl.zst", lambda path: cut_short(path, zstandard.ZstdCompressor().compress)),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, name: str, write: Callable[[Path], object]) -> None:
    write(tmp_path / name)
    assert_error(TextFiles([str(tmp_path)]), str(tmp_path / name), "cannot be read")


@pytest.mark.parametrize("max_tokens", [0, -1])
@pytest.mark.parametrize(
    "build",
    [
        lambda count: StandardLibrary(max_tokens=count),
        lambda count: TextFiles(["x"], max_tokens=count),
        lambda count: HubDataset("owner/corpus", max_tokens=count),
    ],
    ids=["StandardLibrary", "TextFiles", "HubDataset"],
)
def test_a_corpus_of_no_tokens_is_refused_at_construction(
    build: Callable[[int], Source], max_tokens: int, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id.split("-")[0]
    with pytest.raises(ValueError, match=rf"{name}\.max_tokens is {max_tokens}; .*null for all"):
        build(max_tokens)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE=1, which is read at import."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("path", ["no-such-owner/no-such-corpus", "/no/such/folder", "two//slashes"])
def test_a_hub_name_that_cannot_be_opened_is_named(path: str) -> None:
    assert_error(HubDataset(path), f"path={path!r}, split='train'", "cannot be read")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "validation"}, "Available splits: ['train']"),
        ({"name": "python"}, "Available: ['default']"),
        ({"data_files": "b.parquet"}, "b.parquet"),
        ({"column": "content"}, "['text', 'id']"),
        ({"column": "id"}, "int"),
    ],
    ids=["split", "name", "data_files", "column", "column without text"],
)
def test_a_wrong_option_of_a_hub_dataset_is_named(tmp_path: Path, options: dict[str, str], said: str) -> None:
    pq.write_table(pa.table({"text": ["a"], "id": [1]}), tmp_path / "a.parquet")
    assert_error(HubDataset(str(tmp_path), **options), str(tmp_path), said, *options.values())


def test_an_error_while_a_hub_dataset_is_streamed_names_it(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": ')
    assert_error(HubDataset(str(tmp_path)), f"path={str(tmp_path)!r}", "cannot be read")


def test_a_compressed_file_cut_short_is_an_error_of_a_hub_dataset_too(tmp_path: Path) -> None:
    cut_short(tmp_path / "train.jsonl.gz")
    assert_error(HubDataset(str(tmp_path)), f"path={str(tmp_path)!r}", "cannot be read")
