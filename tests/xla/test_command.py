"""The command line trains a stage on four XLA devices: validation, sampling, checkpoints, export, and going on."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from coda.sharded import is_sharded
from tests.xla.programs import run_python

pytestmark = pytest.mark.slow
CONFIGS = ["configs/stage2.yaml", "configs/rehearsal.yaml", "configs/trainer/xla_cpu.yaml"]
SMALL = {
    "data.init_args.sequence_length": 64,
    "data.init_args.vocab_size": 512,
    "data.init_args.val_fraction": 0.4,
    "model.backbone.init_args.hidden_size": 32,
    "model.backbone.init_args.intermediate_size": 64,
    "trainer.log_every_n_steps": 3,
    "trainer.val_check_interval": 4,
    "trainer.limit_val_batches": 2,
    "checkpoint.every_n_train_steps": 4,
    "sampling.every_n_steps": 0,
    "sampling.at_validation": "true",
    "sampling.max_new_tokens": 8,
    "sampling.steps": 4,
}


def command(
    subcommand: str, corpus: Path, folder: Path, hardware: str = "CPU", **options: Any
) -> "subprocess.CompletedProcess[str]":
    sources = f'[{{"class_path": "coda.data.TextFiles", "init_args": {{"paths": ["{corpus}"]}}}}]'
    settings = {**SMALL, "data.init_args.sources": sources, "trainer.logger.init_args.save_dir": folder, **options}
    arguments = [part for config in CONFIGS for part in ("--config", config)]
    arguments += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return run_python(
        "main.py", subcommand, *arguments, devices=4, CODA_CACHE=str(folder / "cache"), PJRT_DEVICE=hardware
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(60):
        (folder / f"{i}.py").write_text(f"def f{i}(a, b):\n    return a * {i} + b\n\n\nclass C{i}:\n    x = {i}\n" * 8)
    return folder


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("run")
    return folder, command("fit", corpus, folder, **{"trainer.max_steps": 8})


def test_a_stage_trains_from_the_command_line(run: tuple[Path, Any]) -> None:
    folder, done = run
    assert done.returncode == 0, done.stderr[-3000:]
    version = folder / "stage2" / "version_0"
    events = EventAccumulator(str(version)).Reload()
    scalars = set(events.Tags()["scalars"])
    wanted = {
        "train/loss",
        "train/gradient_norm",
        "val/bound",
        "samples/parses",
        "throughput/tokens_per_sec",
        "schedule/S1",
    }
    assert wanted <= scalars
    assert any(name.startswith("samples/prefix_0") for name in events.Tags()["tensors"])
    assert is_sharded(str(version / "checkpoints" / "last.ckpt")) and is_sharded(
        str(version / "checkpoints" / "step=8.ckpt")
    )
    assert not [path for path in (version / "checkpoints").iterdir() if path.name.startswith(".")]
    assert (version / "export" / "model.safetensors").is_file()


def test_it_goes_on_where_it_stopped(run: tuple[Path, Any], corpus: Path) -> None:
    folder, _ = run
    done = command("fit", corpus, folder, **{"trainer.max_steps": 12, "ckpt_path": "last", "export.enabled": "false"})
    assert done.returncode == 0, done.stderr[-3000:]
    events = EventAccumulator(str(folder / "stage2" / "version_0")).Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [2, 5, 8, 11]


def test_two_precisions_are_one_line(corpus: Path, tmp_path: Path) -> None:
    options = {"trainer.precision": "32-true", "trainer.strategy.init_args.precision": "bf16-mixed"}
    done = command("fit", corpus, tmp_path, **{"trainer.max_steps": 1, **options})
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: trainer.precision is 32-true, but")


def test_no_hardware_is_refused(corpus: Path, tmp_path: Path) -> None:
    """Although torch_xla, once something imports it, would take the CPU."""
    done = command("fit", corpus, tmp_path, hardware="", **{"trainer.max_steps": 1})
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: the environment variable PJRT_DEVICE is not set")
