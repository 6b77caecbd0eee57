"""Records from datasets of the Hugging Face hub, streamed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import IterableDataset, load_dataset

from coda.data.sources import PARTS, BadRecordError, RecordSource, reason


class HubRecords(RecordSource):
    """Records of a dataset.

    Args:
        path: Name, for example ``open-web-math/open-web-math``, or a folder laid out like one.
        name: Configuration of the dataset.
        split: Split.
        data_files: Which of its files to read; None reads all.
        revision: Branch, tag or commit; pin it for a corpus that stays the same.
        **options: See :class:`RecordSource`.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        data_files: str | list[str] | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.options = {"path": path, "name": name, "split": split, "data_files": data_files, "revision": revision}
        self._dataset: IterableDataset | None = None

    def __getstate__(self) -> dict[str, Any]:
        # An open dataset does not travel to other processes.
        return self.__dict__ | {"_dataset": None}

    def default_name(self) -> str:
        """See :meth:`Source.default_name`."""
        parts = (Path(str(self.options["path"])).name, self.options["name"])
        return "-".join(str(part) for part in parts if part)

    def parts(self) -> list[list[int]]:
        """See :meth:`Source.parts`: which of how many parts."""
        count = min(self._open().num_shards, PARTS)
        return [[index, count] for index in range(count)]

    def fingerprint(self) -> dict[str, Any]:
        """See :meth:`Source.fingerprint`."""
        folder = Path(str(self.options["path"]))
        local = [file for file in sorted(folder.rglob("*")) if file.is_file()] if folder.is_dir() else []
        states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in local]
        return super().fingerprint() | self.options | {"files": states}

    def records(self, part: list[int]) -> Iterator[tuple[Any, Callable[[], str]] | BadRecordError]:
        """See :meth:`RecordSource.records`."""
        index, count = part
        where = f"{type(self).__name__} {self.options['path']}"
        rows = iter(self._open().shard(num_shards=count, index=index))
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # whatever the readers of its formats, its script or the line raise
                raise self._unreadable(error) from error
            yield row, where.__str__

    def _open(self) -> IterableDataset:
        if self._dataset is None:
            try:
                self._dataset = load_dataset(**self.options, streaming=True)  # lists all files: slow for many
            except Exception as error:
                raise self._unreadable(error) from error
        return self._dataset

    def _unreadable(self, error: Exception) -> ValueError:
        given = ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)
        return ValueError(f"{type(self).__name__}({given}) cannot be read: {reason(error)}")
