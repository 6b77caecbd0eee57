"""``python -m coda.data.prepare``: in a process of its own, as a person runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coda.data import CorpusDataModule, TextFiles
from coda.data.store import TokenStore
from tests.data.helpers import content, write_jsonl

DOCUMENTS = [f"def f{i}(x):\n    return x * {i}\n" for i in range(300)]


def run(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coda.data.prepare", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"CODA_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
    )


def config_file(path: Path, source: dict[str, Any]) -> Path:
    options = {
        "sequence_length": 8,
        "global_batch_size": 1,
        "vocab_size": 280,
        "val_fraction": 0.1,
        "sources": [{"class_path": "coda.data.TextFiles", "init_args": source}],
    }
    path.write_text(json.dumps({"class_path": "coda.data.CorpusDataModule", "init_args": options}))
    return path


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """What an error says, which must be no traceback."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_corpus_is_prepared_trained_on_verified_and_found_damaged(tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "code.jsonl", [*DOCUMENTS, ""])
    config, output = config_file(tmp_path / "data.yaml", {"paths": [corpus]}), tmp_path / "store"
    first = run("--config", config, "--output", output, "--processes", 1, cache=tmp_path / "cache")
    assert first.returncode == 0, first.stderr
    store = TokenStore(output)
    train, val = (store.tokens(split) for split in ("train", "val"))
    expected = f"code.jsonl: 300 documents, {train:,} tokens (train), {val:,} tokens (val), 1 empty\n"
    assert first.stdout == expected

    own = CorpusDataModule(8, 1, [TextFiles([corpus])], vocab_size=280, val_fraction=0.1, cache_dir=str(tmp_path / "x"))
    assert content(own.store) == content(store)

    sound = run("--output", output, "--verify", cache=tmp_path / "cache")
    assert (sound.returncode, sound.stdout) == (0, expected)
    shard = next(output.glob("code.jsonl/*.train.tokens"))
    shard.write_bytes(bytes(4) + shard.read_bytes()[4:])
    damaged = run("--output", output, "--verify", cache=tmp_path / "cache")
    assert last_line(damaged).startswith(f"error: {shard} has checksum ")


@pytest.mark.slow
def test_a_source_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    config = config_file(tmp_path / "data.yaml", {"paths": ["/no/such/file.jsonl"]})
    result = run("--config", config, "--output", tmp_path / "store", "--processes", 1, cache=tmp_path / "cache")
    assert last_line(result).startswith("error: TextFiles.paths names /no/such/file.jsonl, which does not exist")


@pytest.mark.slow
def test_a_setting_that_cannot_work_is_told_among_what_the_parser_says(tmp_path: Path) -> None:
    config = config_file(tmp_path / "data.yaml", {"paths": ["x"], "weight": 0})
    result = run("--config", config, "--output", tmp_path / "store", cache=tmp_path / "cache")
    assert last_line(result)
    assert "TextFiles.weight is 0.0; give a positive share" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "{}/store"], "--config is missing"),
        (["--output", "{}/store", "--verify"], "/store is no prepared corpus: it has no manifest.json"),
    ],
    ids=["no config", "nothing to verify"],
)
def test_a_bad_command_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = run(*[argument.format(tmp_path) for argument in arguments], cache=tmp_path / "cache")
    assert said in last_line(result)
    assert not (tmp_path / "store").exists()
