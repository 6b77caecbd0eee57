"""``python main.py fit`` on a tiny corpus in processes of its own, and what such a run leaves behind."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
TINY = [
    "--config=quickstart.yaml",
    *(f"--model.backbone.init_args.{key}={value}" for key, value in SIZES.items()),
    "--model.backbone.init_args.num_attention_heads=2",
    "--model.backbone.init_args.num_key_value_heads=1",
    *("--data.sequence_length=32", "--data.global_batch_size=8", "--data.vocab_size=280", "--data.val_fraction=0.25"),
    *("--trainer.max_steps=12", "--trainer.log_every_n_steps=1", "--trainer.val_check_interval=4"),
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--checkpoint.every_n_train_steps=2", "--checkpoint.save_top_k=-1", "--sampling.at_validation=false"),
    "--ckpt_path=last",
]
WITNESS = ["--trainer.callbacks+=tests.resume.witness.Witness", "--trainer.callbacks.folder=read"]
TWO_RANKS = ["--trainer.devices=2", "--trainer.strategy=ddp"]


@dataclass
class Run:
    """A folder in which a command is run, and run again after it was killed. Eight rows a step, four steps a pass."""

    folder: Path
    corpus: Path

    def fit(self, *options: str, expect: int = 0) -> str:
        """Run it with the witness and return what it prints; fails if it does not end with ``expect``."""
        done = self.command("fit", *WITNESS, *options)
        assert done.returncode == expect, f"{done.returncode}: {done.stdout}{done.stderr}"[-3000:]
        return done.stdout + done.stderr

    def command(self, *args: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        self.folder.mkdir(exist_ok=True)
        sources = ["--data.sources+=TextFiles", f"--data.sources.paths=[{self.corpus}]"]
        command, *options = args
        return subprocess.run(
            [sys.executable, str(REPOSITORY / "main.py"), command, *TINY, *sources, *options],
            cwd=self.folder,
            env=environment(self.folder.parent / "cache"),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    @property
    def version(self) -> Path:
        """The logger's folder; fails unless there is one alone."""
        (version,) = (self.folder / "runs" / "quickstart").iterdir()
        return version

    @property
    def checkpoints(self) -> Path:
        return self.version / "checkpoints"

    def last(self) -> dict[str, Any]:
        return torch.load(self.checkpoints / "last.ckpt", weights_only=True)

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """All points of TensorBoard by curve, in the order in which they were written."""
        events = EventAccumulator(str(self.version), size_guidance={"scalars": 0})
        events.Reload()
        # Speed differs, and Lightning repeats the last value of a noise level that a step has no row of.
        tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("throughput", "noise"))]
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}

    def losses(self) -> list[float]:
        """Of all steps; fails if one is missing or there twice."""
        points = self.curves()["train/loss"]
        assert [step for step, _ in points] == list(range(len(points)))
        return [loss for _, loss in points]

    def read(self) -> list[dict[int, list[list[int]]]]:
        """For every process that trained and each step: the samples of each of its micro-batches."""
        processes: list[dict[int, list[list[int]]]] = []
        for path in sorted((self.folder / "read").iterdir()):
            steps: dict[int, list[list[int]]] = {}
            for line in path.read_text().splitlines():
                step, samples = line.split(":")
                steps.setdefault(int(step), []).append([int(sample) for sample in samples.split()])
            processes.append(steps)
        return processes


def environment(cache: Path) -> dict[str, str]:
    """What the processes share: one thread, no hub, the tests on their path."""
    settings = {"CODA_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **settings}


def assert_same_end(run: Run, expected: Run) -> None:
    """Weights and optimizer state are equal bit for bit, and so is every curve."""
    ours, theirs = run.last(), expected.last()
    assert ours["global_step"] == theirs["global_step"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "CorpusDataModule"):
        assert_equal(ours[part], theirs[part], part)
    assert run.losses() == expected.losses()
    assert_equal(run.curves(), expected.curves(), "curves")


def assert_equal(ours: Any, theirs: Any, where: str) -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(one, other, f"{where}.{i}")
    else:
        assert ours == theirs, where
