"""Files and folders that exist whole or not at all, and the cache of results under a key of what shaped them."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lightning.pytorch.utilities import rank_zero_info


def default_cache() -> Path:
    """Where tokenizers and tokenised corpora are kept: ``$CODA_CACHE``, else ``~/.cache/coda``."""
    return Path(os.environ.get("CODA_CACHE", Path.home() / ".cache" / "coda"))


def cache_key(*parts: Any) -> str:
    """Hash of everything that shaped a cached result."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to ``final`` if the block succeeds, and removed if it fails.

    If another process was faster, its folder stays and this one is dropped: the key says that they are the same.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        try:
            unfinished.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def replace_folder(new: Path, final: Path) -> None:
    """Rename ``new`` to ``final``; what was there, folder or file, stays whole beside it until then."""
    old = final.with_name(f".{final.name}.old")
    _remove(old)
    if final.exists():
        final.rename(old)
    new.rename(final)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def new_file(final: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write that replaces ``final`` once it is safe on disk, and is removed if the block fails.

    Whatever happens at any moment, ``final`` is the old file or the new one, whole.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, because a rename between file systems is a copy.
    descriptor, name = tempfile.mkstemp(prefix=f".{final.name}.", dir=final.parent)
    os.close(descriptor)
    try:
        with Path(name).open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        os.replace(name, final)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, whole or not at all."""
    with new_file(path) as file:
        file.write(json.dumps(value, indent=1, default=str).encode())


def checksum(path: Path) -> str:
    """CRC-32 of a file, in hexadecimal: about 1 GB/s."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work in ``folder``; the others wait. A process that dies lets go."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rank_zero_info(f"waiting for another process that works in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
