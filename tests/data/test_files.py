"""Records from files: compressed or not, local or behind a URL, with line numbers, skipped and counted or not."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from coda.data import Source, TextFiles
from coda.data.sources import PARTS, Skipped, group

LINES = [
    b'\xef\xbb\xbf{"text": "first"}',
    b"",
    b'{"text": "cut',
    b'{"text": "caf\xe9"}',
    b'{"code": "x"}',
    b'["text"]',
    b'{"text": 5}',
    b'{"text": null}',
    b"\t ",
    b'{"text": "a\\u2028b\xe2\x80\xa8c\\nd", "id": 1}',
    b'{"text": "  \\n"}',
    b'{"text": "last"}',
]
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
each_compression = pytest.mark.parametrize("ending", COMPRESSIONS)


def read(source: Source) -> tuple[list[str], Counter[str]]:
    """The documents, and how many records were skipped by reason."""
    items = [item for part in source.parts() for item in source.read(part)]
    skipped = Counter(item.reason for item in items if isinstance(item, Skipped))
    return [item for item in items if isinstance(item, str)], skipped


@pytest.fixture(params=["path", "file URL", "memory URL"])
def store_bytes(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, bytes], str]:
    """Writes a file in one of the places that can be read; returns what to call it."""

    def store(name: str, content: bytes) -> str:
        prefix = {"path": "", "file URL": "file://", "memory URL": "memory:/"}[request.param]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with fsspec.open(f"{prefix}{tmp_path}/{name}", "wb") as file:
            file.write(content)
        return f"{prefix}{tmp_path}/{name}"

    return store


@each_compression
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_bad_records_are_skipped_and_counted(store_bytes: Callable[[str, bytes], str], ending: str, end: bytes) -> None:
    url = store_bytes(f"a.jsonl{ending}", COMPRESSIONS[ending](end.join(LINES)))
    documents, skipped = read(TextFiles([url], on_error="skip"))
    assert documents == ["first", "a\u2028b\u2028c\nd", "last"]
    assert skipped == {"malformed": 2, "no column": 1, "no object": 1, "no text": 1, "empty": 2}


@each_compression
@pytest.mark.parametrize("line", [3, 4, 5, 6, 7])
def test_the_first_bad_record_ends_the_reading_and_is_named_by_line(
    store_bytes: Callable[[str, bytes], str], ending: str, line: int
) -> None:
    lines = [content if number == line else b"" for number, content in enumerate(LINES, start=1)]
    url = store_bytes(f"a.jsonl{ending}", COMPRESSIONS[ending](b"\n".join(lines)))
    with pytest.raises(ValueError, match=r"\A[^\n]+on_error to skip\Z") as error:
        read(TextFiles([url]))
    assert f"a.jsonl{ending}, line {line}," in str(error.value)


@each_compression
def test_an_empty_file_has_no_records(store_bytes: Callable[[str, bytes], str], ending: str) -> None:
    assert read(TextFiles([store_bytes(f"a.jsonl{ending}", COMPRESSIONS[ending](b""))])) == ([], Counter())


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_file_of_several_compressed_parts_is_read_to_its_end(
    store_bytes: Callable[[str, bytes], str], ending: str
) -> None:
    parts = [COMPRESSIONS[ending](b'{"text": "%d"}\n' % i) for i in range(3)]
    assert read(TextFiles([store_bytes(f"a.jsonl{ending}", b"".join(parts))]))[0] == ["0", "1", "2"]


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_cut_short_is_an_error_however_bad_records_are_met(
    store_bytes: Callable[[str, bytes], str], ending: str, share: float, on_error: str
) -> None:
    """It was not written whole: nobody knows how much of it is missing."""
    content = COMPRESSIONS[ending](b"".join(b'{"text": "%x"}\n' % (i * i % 9973) for i in range(20_000)))
    url = store_bytes(f"a.jsonl{ending}", content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"\ATextFiles\.paths names [^\n]*a\.jsonl{ending}, which cannot be read: "):
        read(TextFiles([url], on_error=on_error))  # type: ignore[arg-type]


def test_a_folder_behind_a_url_is_searched_through(store_bytes: Callable[[str, bytes], str]) -> None:
    for name in ("b.txt", "a/z.md", "c.bin", "a/deep/x.py"):
        url = store_bytes(f"folder/{name}", name.encode())
    folder = url[: url.index("/folder/") + len("/folder")]
    assert read(TextFiles([folder]))[0] == read(TextFiles([f"{folder}/"]))[0] == ["a/deep/x.py", "a/z.md", "b.txt"]
    assert TextFiles([folder]).corpus == TextFiles([f"{folder}/"]).corpus == "folder"


def test_a_parquet_file_without_the_column_is_skipped_row_by_row(store_bytes: Callable[[str, bytes], str]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"content": ["a", "b", None], "id": [1, 2, 3]}), sink)
    url = store_bytes("a.parquet", sink.getvalue().to_pybytes())
    assert read(TextFiles([url], on_error="skip")) == ([], Counter({"no column": 3}))
    with pytest.raises(ValueError, match=r"a\.parquet has no column 'text'; [^\n]*\['content', 'id'\]"):
        read(TextFiles([url]))
    assert read(TextFiles([url], column="content")) == (["a", "b"], Counter(empty=1))


def test_a_file_behind_a_url_that_changes_changes_the_fingerprint(store_bytes: Callable[[str, bytes], str]) -> None:
    url = store_bytes("a.txt", b"old")
    before = json.dumps(TextFiles([url]).fingerprint())
    assert json.dumps(TextFiles([url]).fingerprint()) == before
    store_bytes("a.txt", b"new, and longer")
    assert json.dumps(TextFiles([url]).fingerprint()) != before


def test_parts_cover_all_files_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coda.data.sources.PART_BYTES", 50)
    for i in range(30):
        (tmp_path / f"{i:02}.txt").write_text("x" * (i * 7 % 23 + 1))
    source = TextFiles([str(tmp_path)])
    assert 3 < len(source.parts()) < 30
    assert [path for part in source.parts() for path in part] == [str(tmp_path / f"{i:02}.txt") for i in range(30)]


@pytest.mark.parametrize(
    "sizes",
    [[], [0], [0, 0, 0], [1] * 5000, [1 << 40], [1 << 30] * 5000, [5, 1 << 40, 5], [1 << 40, 1], [1, 1 << 40]],
    ids=lambda sizes: f"{len(sizes)} of {max(sizes, default=0)}",
)
def test_groups_are_few_and_cover_all(sizes: list[int]) -> None:
    groups = group(sizes)
    assert [i for part in groups for i in part] == list(range(len(sizes)))
    assert all(groups)
    assert len(groups) <= PARTS
    for part in groups[:-1]:
        assert sum(sizes[i] for i in part) >= 4 << 20


def test_a_file_is_read_as_a_stream(tmp_path: Path) -> None:
    """What is behind the record asked for does not matter yet."""
    lines = b"".join(b'{"text": "%d"}\n' % i for i in range(200_000))
    (tmp_path / "a.jsonl").write_bytes(lines + b"nonsense\n")
    items = iter(TextFiles([str(tmp_path / "a.jsonl")]).documents())
    assert [next(items) for _ in range(3)] == ["0", "1", "2"]
