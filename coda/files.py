"""Folders that exist whole or not at all, and the cache of results under a key of everything that shaped them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
