"""Files and folders that exist whole or not at all, checksums, and locks."""

import multiprocessing
import os
import signal
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from coda.files import checksum, locked, new_file, new_folder, write_json


def test_a_file_takes_its_name_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    path.parent.mkdir()
    path.write_text("old")
    with new_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def interrupted(_: Any) -> None:
    raise KeyboardInterrupt


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    before = path.read_text()
    with pytest.raises(TypeError):
        write_json(path, {(1, 2): "no key of JSON"})
    with pytest.raises(KeyboardInterrupt), new_file(path) as file:
        interrupted(file.write(b"half"))
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a") as folder:
        interrupted((folder / "half").write_text("x"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_finished_first_stays(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("ours")
        with new_folder(tmp_path / "a") as faster:
            (faster / "x").write_text("theirs")
    assert (tmp_path / "a" / "x").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("size", [0, 1, 1 << 22, (1 << 22) + 1])
def test_the_checksum_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    assert checksum(tmp_path / "a") == f"{zlib.crc32(content):08x}"


def hold(folder: Path, holding: Any, release: Any, done: Any) -> None:
    with locked(folder):
        holding.set()
        release.wait(20)
        done.value = time.monotonic()


@pytest.mark.parametrize("end", ["lets go", "dies"])
def test_a_second_process_waits_until_the_first_lets_go_or_dies(tmp_path: Path, end: str) -> None:
    context = multiprocessing.get_context("fork")
    events = [context.Event() for _ in range(4)]
    ends = [context.Value("d", 0.0) for _ in range(2)]
    first, second = (
        context.Process(target=hold, args=(tmp_path / "new", *events[2 * i : 2 * i + 2], ends[i])) for i in range(2)
    )
    first.start()
    assert events[0].wait(20)
    second.start()
    assert not events[2].wait(0.3)
    if end == "dies":
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
    else:
        events[1].set()
    assert events[2].wait(20)
    events[3].set()
    for process in (first, second):
        process.join(20)
    assert second.exitcode == 0
    assert ends[1].value > ends[0].value
