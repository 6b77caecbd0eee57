"""A corpus that fails on demand, importable by spawned processes, which say in files what they do."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coda.data.sources import Document, Skipped, Source


class Flaky(Source):
    """Parts of 300 numbered documents each.

    A file ``begun-N-PID`` appears in ``folder`` when part N is begun. While there is a file ``raise`` or ``die`` that
    holds N, reading part N ends in an error or in the death of the process, after 280 documents.
    """

    def __init__(self, folder: Path, count: int, seconds: float = 0.0, **mixing: Any) -> None:
        super().__init__(**mixing)
        self.folder = folder
        self.count = count
        self.seconds = seconds

    def default_name(self) -> str:
        return "flaky"

    def parts(self) -> list[int]:
        return list(range(self.count))

    def read(self, part: int) -> Iterator[Document | Skipped]:
        (self.folder / f"begun-{part}-{os.getpid()}").touch()
        time.sleep(self.seconds)
        for i in range(300):
            if i == 280 and self._asked("raise", part):
                raise ValueError(f"part {part} is broken")
            if i == 280 and self._asked("die", part):
                os.kill(os.getpid(), signal.SIGKILL)
            yield f"part {part}, document {i}" if i % 50 else Skipped("fiftieth")

    def begun(self) -> list[int]:
        """The parts that were begun, sorted, each as often as it was; forgets them."""
        files = sorted(self.folder.glob("begun-*"))
        for file in files:
            file.unlink()
        return sorted(int(file.name.split("-")[1]) for file in files)

    def _asked(self, what: str, part: int) -> bool:
        file = self.folder / what
        return file.is_file() and int(file.read_text()) == part
