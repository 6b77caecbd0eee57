"""Corpora of text."""

import importlib.util
import sys
import sysconfig
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from coda.data.files import RECORD_SUFFIXES, TEXT_SUFFIXES, FileRecords
from coda.data.hub import HubRecords
from coda.data.sources import Document, RecordSource, Skipped, Source, group, require_columns, require_text

# Tests, vendored code and generated tables: not what a coder should learn to write.
EXCLUDED = frozenset(
    {"test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    | {"encodings", "pydoc_data", "lib2to3", "ensurepip"}
)


class TextColumn(RecordSource):
    """Takes the text of one column.

    Args:
        column: Field of the records that holds the text.
        **options: See the base classes.
    """

    def __init__(self, *args: Any, column: str = "text", **options: Any) -> None:
        super().__init__(*args, **options)
        self.column = column

    def document(self, record: Any, where: Callable[[], str]) -> str | Skipped:
        """See :meth:`RecordSource.document`."""
        if not isinstance(record, str):  # a text file is a document as it is
            record = require_text(require_columns(record, [self.column], where)[self.column], self.column, where)
        return record if record.strip() else Skipped("empty")

    def fingerprint(self) -> dict[str, Any]:
        """See :meth:`Source.fingerprint`."""
        return super().fingerprint() | {"column": self.column}


class TextFiles(TextColumn, FileRecords):
    """``.py``, ``.txt`` and ``.md`` files are one document each, JSONL(.gz, .zst) and parquet one per record.

    Args:
        paths: Files, or folders that are searched through: local, or URLs such as ``s3://bucket/folder``.
        column: Field of the records that holds the text.
        **options: See :class:`coda.data.sources.RecordSource` and :class:`coda.data.sources.Source`.
    """

    suffixes = TEXT_SUFFIXES + RECORD_SUFFIXES

    def __init__(self, paths: list[str], column: str = "text", **options: Any) -> None:
        super().__init__(paths=paths, column=column, **options)
        self.columns = [column]


class HubDataset(TextColumn, HubRecords):
    """A dataset of the Hugging Face hub, streamed.

    Args:
        path: Name, for example ``open-web-math/open-web-math``, or a folder laid out like one.
        name: Configuration of the dataset.
        split: Split.
        column: Column that holds the text.
        data_files: Which of its files to read; None reads all.
        revision: Branch, tag or commit; pin it for a corpus that stays the same.
        **options: See :class:`coda.data.sources.RecordSource` and :class:`coda.data.sources.Source`.
    """


class PythonFiles(Source):
    """The Python files of a folder, without tests and tables. Not to be confused with :class:`TextFiles`."""

    @abstractmethod
    def root(self) -> Path:
        """The folder. Raises ValueError if there is none."""

    def files(self) -> list[Path]:
        """The source files, sorted."""
        found, root = [], self.root()
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).parts
            generated = parts[0].startswith(("_sysconfigdata", "config-"))
            if not generated and not EXCLUDED.intersection(parts[:-1]) and path.is_file() and path.stat().st_size:
                found.append(path)
        if not found:
            raise ValueError(f"no Python sources under {root}; give data.sources files of your own (TextFiles)")
        return found

    def parts(self) -> list[list[str]]:
        """See :meth:`Source.parts`."""
        files = self.files()
        return [[str(files[i]) for i in part] for part in group([file.stat().st_size for file in files])]

    def read(self, part: list[str]) -> Iterator[Document | Skipped]:
        """See :meth:`Source.read`."""
        for path in part:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
            yield text if text.strip() else Skipped("empty")

    def fingerprint(self) -> dict[str, Any]:
        """See :meth:`Source.fingerprint`."""
        files = self.files()
        size = sum(file.stat().st_size for file in files)
        return super().fingerprint() | {"root": str(self.root()), "files": len(files), "bytes": size}


class StandardLibrary(PythonFiles):
    """Python's own standard library without its tests and tables: real code on any machine, with no download.

    Args:
        **mixing: See :class:`coda.data.sources.Source`.
    """

    def default_name(self) -> str:
        """See :meth:`Source.default_name`."""
        return "standard_library"

    def root(self) -> Path:
        """See :meth:`PythonFiles.root`."""
        return Path(sysconfig.get_paths()["stdlib"])

    def fingerprint(self) -> dict[str, Any]:
        """See :meth:`Source.fingerprint`."""
        return super().fingerprint() | {"python": sys.version}


class InstalledPackage(PythonFiles):
    """The Python files of an installed package, without its tests: a further corpus on any machine.

    Args:
        package: Name to import it by, for example ``torch``.
        **mixing: See :class:`coda.data.sources.Source`.
    """

    def __init__(self, package: str, **mixing: Any) -> None:
        super().__init__(**mixing)
        self.package = package

    def default_name(self) -> str:
        """See :meth:`Source.default_name`."""
        return self.package

    def root(self) -> Path:
        """See :meth:`PythonFiles.root`."""
        try:
            spec = importlib.util.find_spec(self.package)
        except (ImportError, ValueError):  # a submodule of nothing, or no name
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"InstalledPackage.package is {self.package!r}, which is no installed package; install it")
        return Path(spec.submodule_search_locations[0])
