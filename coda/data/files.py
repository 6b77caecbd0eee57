"""Records from files: text, JSONL and parquet, compressed or not, on this machine or behind any fsspec URL."""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import fsspec
import pyarrow
import pyarrow.parquet

from coda.data.sources import BadRecordError, RecordSource, group, reason

TEXT_SUFFIXES = (".py", ".txt", ".md")
RECORD_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, pyarrow.ArrowException)


class FileRecords(RecordSource):
    """Records of local or remote files.

    Args:
        paths: Files, or folders that are searched through: local, or URLs such as ``s3://bucket/folder``.
        **options: See :class:`RecordSource`.
    """

    suffixes: tuple[str, ...] = RECORD_SUFFIXES
    columns: list[str] | None = None  # of parquet files; None reads all

    def __init__(self, paths: list[str], **options: Any) -> None:
        super().__init__(**options)
        self.paths = paths

    def default_name(self) -> str:
        """See :meth:`Source.default_name`."""
        return self.paths[0].rstrip("/").rpartition("/")[2] if self.paths else "corpus"

    def files(self) -> list[tuple[str, int | None, str]]:
        """The files to read, folders expanded and sorted: URL, bytes if known, and what tells one state from another."""
        found = [file for path in self.paths for file in self._expand(path)]
        if not found:
            setting = f"{type(self).__name__}.paths {self.paths}"
            raise ValueError(f"{setting} holds no file that ends in {', '.join(self.suffixes)}")
        return found

    def parts(self) -> list[list[str]]:
        """See :meth:`Source.parts`."""
        files = self.files()
        return [[files[i][0] for i in part] for part in group([size or 0 for _, size, _ in files])]

    def fingerprint(self) -> dict[str, Any]:
        """See :meth:`Source.fingerprint`."""
        return super().fingerprint() | {"files": self.files()}

    def records(self, part: list[str]) -> Iterator[tuple[Any, Callable[[], str]] | BadRecordError]:
        """See :meth:`RecordSource.records`. A text file is one record, a str."""
        for url in part:
            try:
                with fsspec.open(url, "rb") as file:
                    if url.endswith(".parquet"):
                        yield from self._parquet(url, file)
                    elif url.endswith(TEXT_SUFFIXES):
                        yield file.read().decode("utf-8-sig", "replace"), url.__str__
                    else:
                        yield from _json_lines(url, decompressed(url, file))
            except UNREADABLE as error:
                setting = f"{type(self).__name__}.paths"
                raise ValueError(f"{setting} names {url}, which cannot be read: {reason(error)}") from error

    def _expand(self, path: str) -> list[tuple[str, int | None, str]]:
        setting = f"{type(self).__name__}.paths"
        try:
            system, inner = fsspec.core.url_to_fs(path)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{setting} names {path}, which cannot be opened: {reason(error)}") from error
        try:
            if system.isdir(inner):
                found = system.find(inner, detail=True)
                chosen = [info for name, info in sorted(found.items()) if name.endswith(self.suffixes)]
            elif not system.exists(inner):
                raise ValueError(f"{setting} names {path}, which does not exist; give a file or a folder")
            elif not inner.endswith(self.suffixes):
                raise ValueError(f"{setting} names {path}; the formats are {', '.join(self.suffixes)}")
            else:
                chosen = [system.info(inner)]
        except OSError as error:
            raise ValueError(f"{setting} names {path}, which cannot be reached: {reason(error)}") from error
        remote = "://" in path
        return [
            (system.unstrip_protocol(info["name"]) if remote else info["name"], info["size"], _state(info))
            for info in chosen
        ]

    def _parquet(self, url: str, file: IO[bytes]) -> Iterator[tuple[Any, Callable[[], str]] | BadRecordError]:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        missing = [column for column in self.columns or () if column not in names]
        if missing:
            message = f"{url} has no column {missing[0]!r}; set the column to one of {names}"
            yield from (BadRecordError("no column", message) for _ in range(table.metadata.num_rows))
            return
        for batch in table.iter_batches(columns=self.columns):
            for record in batch.to_pylist():
                yield record, url.__str__


def decompressed(url: str, file: IO[bytes]) -> IO[bytes]:
    """What ``file`` holds, by the ending of its name."""
    if url.endswith(".gz"):
        return gzip.open(file)  # type: ignore[return-value]
    if url.endswith(".zst"):  # by Arrow, because the zstandard package takes a file cut short for its end
        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd"))
    return io.BufferedReader(file)  # type: ignore[type-var, return-value]


def _json_lines(url: str, file: IO[bytes]) -> Iterator[tuple[Any, Callable[[], str]] | BadRecordError]:
    for number, line in enumerate(file, start=1):
        line = line.removeprefix(codecs.BOM_UTF8).strip()
        if not line:
            continue
        where = f"{url}, line {number},"
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number too long, too many brackets
            yield BadRecordError("malformed", f"{where} is not JSON: {reason(error)}; mend it")
        else:
            yield record, where.__str__


def _state(info: dict[str, Any]) -> str:
    """When a file last changed, or its checksum: a fingerprint that does not read it."""
    keys = ("mtime", "etag", "ETag", "md5Hash", "LastModified", "created")
    return str(next((info[key] for key in keys if key in info), ""))
