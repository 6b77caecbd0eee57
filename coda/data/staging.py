"""Where a store's files are: on this machine, or behind a URL, from where whole shards are staged to local disk."""

import hashlib
import os
from abc import ABC, abstractmethod
from pathlib import Path

import fsspec

from coda.data.sources import reason
from coda.files import checksum, default_cache, locked, new_file, new_folder


class Location(ABC):
    """A folder of files.

    Args:
        root: Path or URL.

    Attributes:
        verifies: Whether :meth:`local` compares checksums.
    """

    verifies = False

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    @abstractmethod
    def read(self, path: str) -> str:
        """Text of the file at ``path``, relative to the root. Raises FileNotFoundError."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by relative path."""

    @abstractmethod
    def local(self, path: str, expected: str) -> Path:
        """The file at ``path`` on this machine, whose checksum is to be ``expected``."""

    @abstractmethod
    def folder(self, path: str, version: str) -> Path:
        """The folder of small files at ``path`` on this machine, which is another one if ``version`` is."""


class LocalFolder(Location):
    """A folder of this machine."""

    def read(self, path: str) -> str:
        """See :class:`Location`."""
        return (Path(self.root) / path).read_text()

    def sizes(self) -> dict[str, int]:
        """See :class:`Location`."""
        root = Path(self.root)
        return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}

    def local(self, path: str, expected: str) -> Path:
        """See :class:`Location`. The checksum is not compared: see :meth:`coda.data.store.TokenStore.verify`."""
        return Path(self.root) / path

    def folder(self, path: str, version: str) -> Path:
        """See :class:`Location`."""
        return Path(self.root) / path


class StagedFolder(Location):
    """A folder behind an fsspec URL. A file is copied when it is first read, and its checksum compared.

    All processes of a machine share the copies. Where they outgrow their bound, those that were read longest ago are
    deleted; a process that still has one mapped keeps reading it.

    Args:
        root: URL.
        folder: Where the copies go.
        max_bytes: Bound on all copies together; None keeps all.
    """

    verifies = True

    def __init__(self, root: str, folder: Path, max_bytes: int | None = None) -> None:
        super().__init__(root)
        self.copies = folder
        self.max_bytes = max_bytes

    def _system(self) -> tuple[fsspec.AbstractFileSystem, str]:
        # Asked for anew, because a connection does not survive a fork; fsspec keeps one per process.
        try:
            return fsspec.core.url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{self.root} cannot be opened: {reason(error)}") from error

    def read(self, path: str) -> str:
        """See :class:`Location`."""
        system, inner = self._system()
        return str(system.cat_file(f"{inner}/{path}").decode())

    def sizes(self) -> dict[str, int]:
        """See :class:`Location`."""
        system, inner = self._system()
        found = system.find(inner, detail=True)
        return {name.removeprefix(inner).lstrip("/"): int(info["size"]) for name, info in found.items()}

    def local(self, path: str, expected: str) -> Path:
        """See :class:`Location`.

        Raises:
            ValueError: If the file is larger than the bound, or what arrived is not what was prepared.
        """
        copy = self.copies / f"{path}.{expected}"  # so a store prepared anew under the same URL is copied anew
        try:
            os.utime(copy)
            return copy
        except FileNotFoundError:
            pass
        with locked(self.copies):
            if not copy.is_file():
                system, inner = self._system()
                self._make_room(int(system.size(f"{inner}/{path}")), path)
                with new_file(copy) as file, system.open(f"{inner}/{path}", "rb") as remote:
                    while block := remote.read(1 << 24):
                        file.write(block)
                    file.flush()
                    check(Path(file.name), expected, f"{self.root}/{path}")  # before it takes its name
            return copy

    def folder(self, path: str, version: str) -> Path:
        """See :class:`Location`. Not counted against the bound."""
        target = self.copies.with_name(f"{self.copies.name}-{path}-{version}")
        if not target.is_dir():
            system, inner = self._system()
            with new_folder(target) as unfinished:
                for name in self.sizes():
                    if name.startswith(f"{path}/"):
                        (unfinished / name.removeprefix(f"{path}/")).write_bytes(system.cat_file(f"{inner}/{name}"))
        return target

    def _make_room(self, size: int, path: str) -> None:
        if self.max_bytes is None:
            return
        if size > self.max_bytes:
            raise ValueError(f"data.staging_bytes is {self.max_bytes}, but {self.root}/{path} has {size}; raise it")
        copies = [(file.stat(), file) for file in self.copies.rglob("*") if file.is_file() and file.name[0] != "."]
        used = sum(state.st_size for state, _ in copies)
        for state, file in sorted(copies, key=lambda copy: copy[0].st_mtime):
            if used + size <= self.max_bytes:
                return
            file.unlink(missing_ok=True)
            used -= state.st_size


def open_location(root: str, staging: Path | None, staging_bytes: int | None) -> Location:
    """A local folder where ``root`` is a path, a staged one where it is a URL."""
    if "://" not in root:
        return LocalFolder(root)
    key = hashlib.sha256(root.encode()).hexdigest()[:16]
    return StagedFolder(root, (staging or default_cache() / "staging") / key, staging_bytes)


def check(path: Path, expected: str, name: str | None = None) -> None:
    """Compare a file's checksum.

    Args:
        path: The file.
        expected: The checksum.
        name: What to call it in the message; None is the path.

    Raises:
        ValueError: If it is another one.
    """
    found = checksum(path)
    if found != expected:
        raise ValueError(
            f"{name or path} has checksum {found} instead of {expected}: it was changed or damaged; prepare the corpora "
            "again, or copy it anew"
        )
