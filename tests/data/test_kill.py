"""Preparing survives SIGKILL at any moment: the same again loses no document, repeats none and leaves no rubbish."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from coda.data import TextFiles
from coda.data.ingest import prepare
from coda.data.plan import Plan
from coda.data.store import TokenStore
from coda.data.tokenizer import train_tokenizer
from tests.data.helpers import content, documents_of, plan_of, write_jsonl

DOCUMENTS = [f"def f{i}(x):\n    return x * {i}\n" + "    # more\n" * (i % 5) for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(DOCUMENTS, 300)


@pytest.fixture
def plan(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Two parts of three shards each, the last of which is cut, and a corpus of repetitions."""
    monkeypatch.setattr("coda.data.sources.PART_BYTES", 1)
    monkeypatch.setattr("coda.data.ingest.BATCH_DOCUMENTS", 10)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # it matters where the power fails, and takes long
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    paths = [write_jsonl(tmp_path / f"{i}.jsonl", DOCUMENTS[i * 30 : i * 30 + 30]) for i in range(2)]
    again = write_jsonl(tmp_path / "again.jsonl", [*DOCUMENTS[:5], "new"])
    sources = [TextFiles(paths, corpus="a", max_tokens=1_200), TextFiles([again], corpus="b")]
    return plan_of([*sources], tokenizer, 0.2, deduplicate=True, shard_tokens=1)


def die_at(step: int, plan: Plan, folder: Path, steps: Any) -> None:
    """Prepare, but die at the ``step``-th time that a file is about to take its name or to be deleted."""

    def counted(call: Any) -> Any:
        def die_or_call(*args: Any, **options: Any) -> Any:
            steps.value += 1
            if steps.value == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return die_or_call

    os.replace = counted(os.replace)
    os.unlink = counted(os.unlink)
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
    prepare(plan, folder)


def killed(step: int, plan: Plan, folder: Path) -> int | None:
    """Prepare in a process that dies at ``step``; None if it did, else how many steps there were."""
    context = multiprocessing.get_context("fork")
    steps = context.Value("i", 0, lock=False)
    process = context.Process(target=die_at, args=(step, plan, folder, steps))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == (-signal.SIGKILL if steps.value == step else 0)
    return None if process.exitcode else steps.value


def names_in(folder: Path) -> set[str]:
    """All files, but not those above the corpora's folders that never got their names, which are tiny."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.parent != folder or path.name[0] != "."}


@pytest.mark.slow
def test_a_kill_at_any_step_loses_and_repeats_nothing(plan: Plan, tmp_path: Path) -> None:
    whole = content(prepare(plan, tmp_path / "whole"))
    steps = killed(0, plan, tmp_path / "counted")
    assert steps is not None
    assert steps > 40
    for step in range(1, steps + 1):
        folder = tmp_path / f"{step}"
        assert killed(step, plan, folder) is None
        finished = (folder / "manifest.json").exists()
        store = prepare(plan, folder)
        assert content(store) == whole, step
        store.verify()
        if not finished:  # a store that was finished is not cleaned up a second time
            assert names_in(folder) == names_in(tmp_path / "whole"), step


@pytest.mark.slow
def test_a_run_killed_again_and_again_arrives(plan: Plan, tmp_path: Path) -> None:
    """Each attempt gets a few files further, which is one shard at least."""
    whole = content(prepare(plan, tmp_path / "whole"))
    attempts = 1
    while killed(8, plan, tmp_path / "store") is None:
        attempts += 1
        assert attempts < 30
    assert attempts > 4
    assert content(prepare(plan, tmp_path / "store")) == whole


PREPARE = """
import runpy, sys
from coda.data import ingest, plan, sources
sources.PART_BYTES, plan.Plan.shard_tokens = 1, 1
sys.argv[1:] = {arguments!r}
runpy.run_module("coda.data.prepare", run_name="__main__")
"""


def command(config: Path, output: Path, processes: int) -> subprocess.Popen[str]:
    """``python -m coda.data.prepare`` with a part per file and a shard per batch; what it prints goes to printed.txt."""
    arguments = ["--config", str(config), "--output", str(output), "--processes", str(processes)]
    with config.with_name("printed.txt").open("w") as printed:  # a pipe would be held open by workers left behind
        return subprocess.Popen(
            [sys.executable, "-c", PREPARE.format(arguments=arguments)],
            stdout=printed,
            stderr=printed,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see the worker processes")
def test_the_command_killed_at_several_points_goes_on(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    texts = [f"{i} {DOCUMENTS[i % 60] * 20}" for i in range(12 * 300)]
    for i in range(12):
        write_jsonl(tmp_path / f"corpus/{i:02}.jsonl", texts[i * 300 : i * 300 + 300])
    tokenizer.save_pretrained(tmp_path / "given")
    config, output = tmp_path / "data.yaml", tmp_path / "store"
    sources = [{"class_path": "coda.data.TextFiles", "init_args": {"paths": [str(tmp_path / "corpus")]}}]
    options = {"sequence_length": 8, "global_batch_size": 1, "tokenizer": str(tmp_path / "given"), "sources": sources}
    config.write_text(json.dumps({"class_path": "coda.data.CorpusDataModule", "init_args": options}))
    for shards in (1, 9):
        process = command(config, output, processes=2)
        while len(list(output.glob("corpus/*.json"))) < shards:
            assert process.poll() is None, (tmp_path / "printed.txt").read_text()
            time.sleep(0.002)
        workers = children(process.pid)
        process.kill()
        process.wait()
        assert not (output / "manifest.json").exists()
        deadline = time.monotonic() + 20
        while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [worker for worker in workers if alive(worker)]
        for worker in left:
            os.kill(worker, signal.SIGKILL)
        assert not left, "the workers outlive the one that was killed"
    before = {path: path.stat().st_mtime_ns for path in output.glob("corpus/*.json")}
    assert len(before) >= 9
    last = command(config, output, processes=1)
    code = last.wait(timeout=240)
    printed = (tmp_path / "printed.txt").read_text()
    assert code == 0, printed
    assert {path: path.stat().st_mtime_ns for path in before if path.exists()}.items() <= before.items()
    store = TokenStore(output)
    store.verify()
    assert sum(len(documents_of(store, split)) for split in ("train", "val")) == len(texts)
    assert f"corpus: {len(texts):,} documents" in printed
    expected = plan_of([TextFiles([str(tmp_path / "corpus")])], tokenizer, 0.02)
    assert content(store) == content(prepare(expected, tmp_path / "whole"))
    assert not [name for name in names_in(output / "corpus") if name.startswith(".")]
