"""Checkpoints are written whole or not at all, and what is damaged is passed over."""

import os
from pathlib import Path

import pytest
import torch

from coda.checkpoint import RECORD, WholeFileIO, find_last
from tests.resume.command import TWO_RANKS, Run

pytestmark = pytest.mark.slow


def write(path: Path, value: int, seconds: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    WholeFileIO().save_checkpoint({RECORD: {}, "value": torch.full((1000,), value)}, path)
    os.utime(path, (seconds, seconds))
    return path


def test_a_process_that_dies_while_it_writes_leaves_the_checkpoint_before(corpus: Path, tmp_path: Path) -> None:
    """And a newer file that is cut short, as a full disk may leave it, is passed over with a warning."""
    run = Run(tmp_path / "torn", corpus)
    torn = ["--trainer.callbacks+=tests.resume.torn.Torn", "--trainer.callbacks.after=6"]
    run.fit(*torn, expect=9)
    assert not (run.checkpoints / "step=6.ckpt").exists()
    unfinished = [path for path in run.checkpoints.iterdir() if path.suffix != ".ckpt"]
    assert len(unfinished) == 1 and unfinished[0].stat().st_size >= 20_000
    assert run.last()["global_step"] == 4
    whole = (run.checkpoints / "step=4.ckpt").read_bytes()
    (run.checkpoints / "newest.ckpt").write_bytes(whole[: len(whole) // 2])
    printed = run.fit("--trainer.max_steps=6")
    assert "passed over: " in printed and "newest.ckpt' is no readable checkpoint" in printed
    assert "--ckpt_path last: taking" in printed
    assert [list(steps) for steps in run.read()] == [[0, 1, 2, 3, 4, 5], [4, 5]]


def test_a_bad_corpus_ends_all_ranks_at_once(tmp_path: Path) -> None:
    """With the line in which it is bad, and no rank left waiting for the other."""
    corpus = tmp_path / "bad.jsonl"
    corpus.write_text('{"text": "def f(): pass"}\n' * 50 + '{"text": "def f()\n')
    done = Run(tmp_path / "bad", corpus).command("fit", *TWO_RANKS, timeout=120)
    assert done.returncode not in (0, 75)
    assert "bad.jsonl" in done.stderr and "51" in done.stderr


def test_the_checkpoint_written_last_is_found_in_any_version(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    write(folders[0] / "step=9.ckpt", 0, 100)
    newest = write(folders[1] / "step=2.ckpt", 0, 300)
    write(folders[1] / "last.ckpt", 0, 200)
    assert find_last(folders) == newest
    assert find_last([tmp_path / "d"]) is None
    assert find_last([]) is None


@pytest.mark.parametrize("damage", ["short", "empty", "foreign", "folder"])
def test_what_cannot_be_read_is_passed_over_with_a_warning(tmp_path: Path, damage: str) -> None:
    good, bad = write(tmp_path / "good.ckpt", 1, 100), tmp_path / "bad.ckpt"
    if damage == "folder":
        bad.mkdir()
    elif damage == "foreign":
        torch.save({"state_dict": {}}, bad)
    else:
        bad.write_bytes(good.read_bytes()[: 3000 if damage == "short" else 0])
    os.utime(bad, (200, 200))
    with pytest.warns(UserWarning, match=r"passed over: .*bad\.ckpt"):
        assert find_last([tmp_path]) == good


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt", 1, 100)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        WholeFileIO().save_checkpoint({"big": torch.zeros(10_000), "bad": lambda: None}, path)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.load(path)["value"][0] == 1


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    """Lightning can make last.ckpt a link to another checkpoint, which must keep its content."""
    other = write(tmp_path / "step=2.ckpt", 2, 100)
    (tmp_path / "last.ckpt").symlink_to("step=2.ckpt")
    write(tmp_path / "last.ckpt", 3, 100)
    assert torch.load(other)["value"][0] == 2
    assert torch.load(tmp_path / "last.ckpt")["value"][0] == 3
