"""Sources of text: each yields documents and says what shaped them."""

import gzip
import io
import json
import sys
import sysconfig
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import load_dataset

TEXT_SUFFIXES = (".py", ".txt", ".md")
RECORD_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
# Tests, vendored code and generated tables: not what a coder should learn to write.
LIBRARY_EXCLUDED = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    | {"encodings", "pydoc_data", "lib2to3", "ensurepip"}
)


class TextSource(ABC):
    """A corpus of text documents.

    Args:
        max_tokens: Read documents until this many tokens are taken; None reads all.
    """

    def __init__(self, max_tokens: int | None = None) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"{type(self).__name__}.max_tokens is {max_tokens}; take at least 1, or null for all")
        self.max_tokens = max_tokens

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """Yield the documents, always in the same order.

        Raises:
            ValueError: For a missing or malformed file; the message names it.
        """

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Everything that shapes the documents, as JSON: the key under which their tokens are cached."""


class StandardLibrary(TextSource):
    """Python's own standard library without its tests and tables: real code on any machine, with no download.

    Args:
        max_tokens: See :class:`TextSource`.
    """

    def __init__(self, max_tokens: int | None = None) -> None:
        super().__init__(max_tokens)
        self.root = Path(sysconfig.get_paths()["stdlib"])

    def files(self) -> list[Path]:
        """The library's source files, sorted."""
        found = []
        for path in sorted(self.root.rglob("*.py")):
            parts = path.relative_to(self.root).parts
            generated = parts[0].startswith(("_sysconfigdata", "config-"))
            if not generated and not LIBRARY_EXCLUDED.intersection(parts[:-1]) and path.stat().st_size:
                found.append(path)
        if not found:
            raise ValueError(f"no Python sources under {self.root}; give data.sources files of your own (TextFiles)")
        return found

    def documents(self) -> Iterator[str]:
        """See :class:`TextSource`."""
        for path in self.files():
            yield path.read_text(encoding="utf-8", errors="replace")

    def fingerprint(self) -> dict[str, Any]:
        """See :class:`TextSource`."""
        return {"source": "StandardLibrary", "python": sys.version, "files": len(self.files())}


class TextFiles(TextSource):
    """Local files: ``.py``, ``.txt`` and ``.md`` are one document each, JSONL(.gz) and parquet one per record.

    Args:
        paths: Files, or folders that are searched through.
        column: Field of the records that holds the text.
        max_tokens: See :class:`TextSource`.
    """

    def __init__(self, paths: list[str], column: str = "text", max_tokens: int | None = None) -> None:
        super().__init__(max_tokens)
        self.paths = paths
        self.column = column

    def files(self) -> list[Path]:
        """The files to read, folders expanded and sorted."""
        suffixes = TEXT_SUFFIXES + RECORD_SUFFIXES
        found: list[Path] = []
        for path in map(Path, self.paths):
            if path.is_dir():
                found += sorted(file for file in path.rglob("*") if file.name.endswith(suffixes) and file.is_file())
            elif not path.is_file():
                raise ValueError(f"TextFiles.paths names {path}, which does not exist; give a file or a folder")
            elif not path.name.endswith(suffixes):
                raise ValueError(f"TextFiles.paths names {path}; the formats are {', '.join(suffixes)}")
            else:
                found.append(path)
        if not found:
            raise ValueError(f"TextFiles.paths {self.paths} holds no file that ends in {', '.join(suffixes)}")
        return found

    def documents(self) -> Iterator[str]:
        """See :class:`TextSource`."""
        for path in self.files():
            try:
                if path.name.endswith(TEXT_SUFFIXES):
                    yield path.read_text(encoding="utf-8-sig", errors="replace")
                elif path.name.endswith(".parquet"):
                    yield from self._parquet(path)
                else:
                    yield from self._json_lines(path)
            except (OSError, EOFError, zlib.error, UnicodeDecodeError, pyarrow.ArrowException) as error:
                raise ValueError(f"TextFiles.paths names {path}, which cannot be read: {reason(error)}") from error

    def fingerprint(self) -> dict[str, Any]:
        """See :class:`TextSource`."""
        return {"source": "TextFiles", "column": self.column, "files": states(self.files())}

    def _parquet(self, path: Path) -> Iterator[str]:
        file = pyarrow.parquet.ParquetFile(path)
        if self.column not in file.schema_arrow.names:
            raise ValueError(f"{path} has no column {self.column!r}; set column to one of {file.schema_arrow.names}")
        for batch in file.iter_batches(columns=[self.column]):
            for record in batch.to_pylist():
                if text := text_under(self.column, record, str(path)):
                    yield text

    def _json_lines(self, path: Path) -> Iterator[str]:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig"), start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}, is not JSON: {error}") from error
                if text := text_under(self.column, record, f"{path}, line {number},"):
                    # JSON can escape half a surrogate pair, which is no character and has no bytes.
                    yield text.encode("utf-8", "replace").decode("utf-8")


class HubDataset(TextSource):
    """A dataset of the Hugging Face hub, streamed.

    Args:
        path: Name, for example ``open-web-math/open-web-math``, or a folder laid out like one.
        name: Configuration of the dataset.
        split: Split.
        column: Column that holds the text.
        data_files: Which of its files to read; None reads all.
        revision: Branch, tag or commit; pin it for a corpus that stays the same.
        max_tokens: See :class:`TextSource`.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        column: str = "text",
        data_files: str | list[str] | None = None,
        revision: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(max_tokens)
        self.folder = Path(path)
        self.column = column
        self.options = {"path": path, "name": name, "split": split, "data_files": data_files, "revision": revision}

    def documents(self) -> Iterator[str]:
        """See :class:`TextSource`."""
        for row in self._rows():
            if text := text_under(self.column, row, f"HubDataset {self.options['path']}"):
                yield text

    def fingerprint(self) -> dict[str, Any]:
        """See :class:`TextSource`."""
        local = [path for path in sorted(self.folder.rglob("*")) if path.is_file()] if self.folder.is_dir() else []
        return {"source": "HubDataset", "column": self.column, **self.options, "files": states(local)}

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            yield from load_dataset(**self.options, streaming=True)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            given = ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)
            raise ValueError(f"HubDataset({given}) cannot be read: {reason(error)}") from error


def text_under(column: str, record: Any, where: str) -> str:
    """The text of a record of ``where``; empty if there is none.

    Raises:
        ValueError: If the record has no such column, or something else than text in it.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where} has no columns but a bare {type(record).__name__}; write objects with a {column!r}")
    if column not in record:
        raise ValueError(f"{where} has no column {column!r}; set column to one of {list(record)}")
    if not isinstance(record[column], str | None):
        kind = type(record[column]).__name__
        raise ValueError(f"{where} has no text under {column!r} but a value of type {kind}; set column to another one")
    return record[column] or ""


def states(files: list[Path]) -> list[tuple[str, int, int]]:
    """Where files are, how large, and when they last changed: a fingerprint that does not read them."""
    return [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def reason(error: BaseException) -> str:
    """The first line of an error from a library, to be told as part of a sentence."""
    return str(error).strip().partition("\n")[0]
