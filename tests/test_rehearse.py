"""``make rehearse``: four stages, each from the weights of the last, and a sample. And a stage that stops early."""

import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from coda.checkpoint import load_model, read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
STAGES = ["stage1", "stage2", "stage3a", "stage3b"]
# Stands in for the environment's Python: notes how it was called, and has fits log more than they would.
PYTHON = f"""#!/bin/bash
printf '%s\\n' "$*" >> "$(dirname "$0")/calls"
[ "$2" = fit ] && set -- "$@" --trainer.log_every_n_steps 1 --trainer.val_check_interval 10 --trainer.limit_val_batches 4
exec {sys.executable} "$@"
"""

pytestmark = pytest.mark.slow


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def logged(folder: Path, tag: str) -> dict[int, float]:
    events: Any = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def weights(source: Path) -> dict[str, Tensor]:
    return load_model(str(source))[0].state_dict()


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """The folder of the runs, how Python was called, and what was printed."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    folder = tmp_path_factory.mktemp("rehearsal")
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    (folder / "venv" / ".ready").touch()  # newer than what it is made from
    done = run("make", "rehearse", "STEPS=20", f"VENV={folder / 'venv'}", f"RUN={folder / 'run'}")
    return folder / "run", (python.parent / "calls").read_text().splitlines(), done.stdout


def config(run_folder: Path, stage: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((run_folder / stage / "version_0" / "config.yaml").read_text())
    return loaded


def test_the_four_stages_run_in_order_with_their_own_settings(rehearsal: Any) -> None:
    folder, calls, _ = rehearsal
    fits = [call for call in calls if call.startswith("main.py fit")]
    assert [call.split("--config ")[1].split(".yaml")[0] for call in fits] == STAGES
    configs = [config(folder, stage) for stage in STAGES]
    assert [c["trainer"]["max_steps"] for c in configs] == [20] * 4
    kinds = [c["model"]["masking"]["class_path"].rpartition(".")[2] for c in configs]
    assert kinds == ["ProgressiveMasking", "ProgressiveMasking", "InstructionMasking", "InstructionMasking"]
    assert [c["model"]["masking"]["init_args"]["ramp"] for c in configs[2:]] == [0.1, 0.0]
    optimizers = [c["model"]["optimizer"]["class_path"].rpartition(".")[2] for c in configs]
    assert optimizers == ["Adafactor", "Adafactor", "AdamW", "AdamW"]
    modules = [c["data"]["class_path"].rpartition(".")[2] for c in configs]
    assert modules == ["CorpusDataModule"] * 2 + ["InstructionDataModule"] * 2


def test_each_stage_names_the_weights_and_the_tokenizer_of_the_last(rehearsal: Any) -> None:
    folder, _, _ = rehearsal
    assert config(folder, "stage1")["model"]["init_from"] is None
    for before, stage in pairwise(STAGES):
        settings = config(folder, stage)
        assert settings["model"]["init_from"] == str(folder / before / "export")
        assert settings["data"]["init_args"]["tokenizer"] == str(folder / before / "export")


def test_each_stage_begins_better_than_a_fresh_model(rehearsal: Any) -> None:
    """The loss of a stage's first step is that of the weights it begins with."""
    folder, _, _ = rehearsal
    first = [logged(folder / stage / "version_0", "train/loss")[0] for stage in STAGES]
    assert 7.0 < first[0] < 8.5  # ln 2048 = 7.6: nothing is known yet
    assert all(loss < first[0] - 0.4 for loss in first[1:]), first
    bounds = [min(logged(folder / stage / "version_0", "val/bound").items()) for stage in STAGES]
    assert bounds[1][1] < bounds[0][1] and bounds[3][1] < bounds[2][1] < bounds[0][1], bounds


def test_each_stage_goes_on_training(rehearsal: Any) -> None:
    folder, _, _ = rehearsal
    states = [weights(folder / stage / "export") for stage in STAGES]
    for before, after in pairwise(states):
        assert before.keys() == after.keys()
        assert not any(torch.equal(before[key], after[key]) for key in before)


def test_seven_corpora_were_mixed_in_stage_1(rehearsal: Any) -> None:
    """In the report's proportions: over the samples that were read, each within a row of its share."""
    folder, _, _ = rehearsal
    state = read_checkpoint(str(folder / "stage1" / "version_0" / "checkpoints" / "last.ckpt"))["CorpusDataModule"]
    assert state["samples"] == 20 * 8
    order = state["order"]
    assert len(order["corpora"]) == len(set(order["corpora"])) == 7
    assert min(order["rows"]) > 100
    expected = [60.17, 50.75, 38.22, 12.98, 9.18, 5.41, 3.24]
    for share, weight in zip(order["shares"], expected, strict=True):
        assert share / sum(order["shares"]) == pytest.approx(weight / sum(expected), rel=1e-6)


def test_a_sample_of_the_last_stage_is_printed(rehearsal: Any) -> None:
    folder, calls, printed = rehearsal
    asked = f"-m coda.generate --model {folder / 'stage3b' / 'export'} --chat"  # its prompt has several lines
    assert any(call.startswith(asked) for call in calls)
    sample = printed.rpartition('resources."""\'\n')[2]
    assert sample.endswith("\n")
    assert "<|mask|>" not in sample and "Complete the function" not in sample


STOPPING = """
trainer:
  max_steps: 60
  val_check_interval: 4
  limit_val_batches: 4
  log_every_n_steps: 1
  callbacks:
    - class_path: lightning.pytorch.callbacks.EarlyStopping
      init_args: {monitor: val/bound, patience: 2, min_delta: 100.0}
    - {class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {monitor: val/bound, filename: best}}
model: {optimizer: {init_args: {maximize: true}}}
checkpoint: {every_n_train_steps: 1}
sampling: {every_n_steps: 0}
"""


def test_a_stage_that_gets_worse_stops_early_and_exports_its_best_weights(tmp_path: Path) -> None:
    """The optimizer climbs, so the bound rises from one validation to the next."""
    (tmp_path / "stopping.yaml").write_text(STOPPING)
    configs = [f"--config={name}" for name in ("stage3a.yaml", "rehearsal.yaml", tmp_path / "stopping.yaml")]
    run(sys.executable, "main.py", "fit", *configs, f"--trainer.logger.init_args.save_dir={tmp_path}")
    folder = tmp_path / "stage3a" / "version_0"
    bounds = logged(folder, "val/bound")
    last, best = (read_checkpoint(str(folder / "checkpoints" / f"{name}.ckpt")) for name in ("last", "best"))
    # The first validation is the best so far, and the patience ends with the second one that does not improve on it.
    assert last["global_step"] == 12 and len(bounds) == 3
    assert list(bounds.values()) == sorted(bounds.values()), bounds
    assert best["global_step"] == 4
    exported, kept = weights(folder / "export"), weights(folder / "checkpoints" / "best.ckpt")
    final = weights(folder / "checkpoints" / "last.ckpt")
    assert all(torch.equal(exported[key], kept[key]) for key in kept)
    assert not any(torch.equal(exported[key], final[key]) for key in final)
