"""A checkpoint from any moment of training goes on with the right sample, under the right number, in other micro-batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from tests.conftest import Tiny

pytestmark = pytest.mark.slow

STEPS, ROWS, EPOCH = 12, 4, 5  # optimizer steps, rows of each, and steps per pass
MOMENTS = ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"]


class Saver(Callback):
    """Writes ``{moment}-{number}.ckpt`` at every moment; ``steps`` are the optimizer steps that were done by then."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.steps: dict[str, int] = {}

    def save(self, trainer: Trainer, moment: str) -> None:
        if self.folder is not None and not trainer.sanity_checking:
            name = f"{moment}-{sum(key.startswith(moment) for key in self.steps)}.ckpt"
            self.steps[name] = trainer.global_step
            trainer.save_checkpoint(self.folder / name)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop._accumulated_batches_reached():
            self.save(trainer, "on_train_batch_end")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, "on_validation_end")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, "on_train_epoch_end")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, "on_train_end")


class Notes(DummyLogger):
    """What is logged, and the samples of every optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[int, float] = {}
        self.bounds: list[int] = []
        self.passes = 0

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:  # type: ignore[override]
        if "train/loss" in metrics:
            assert step not in self.losses
            self.losses[step] = metrics["train/loss"]
            self.passes = metrics["epoch"]
        if "val/bound" in metrics:
            self.bounds.append(step)


class Reads(Callback):
    """The samples in the order in which they were read."""

    def __init__(self) -> None:
        self.samples: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.samples += batch["sample"].tolist()


@pytest.fixture
def fit(tiny: Tiny) -> Callable[..., tuple[Notes, Reads]]:
    def run(accumulate: int, saver: Saver | None = None, resume: Path | None = None, **options: Any) -> Any:
        notes, reads = Notes(), Reads()
        settings = {"max_steps": STEPS, "accumulate_grad_batches": accumulate, "log_every_n_steps": 1, **options}
        trainer = tiny.trainer(reads, saver or Saver(), logger=notes, **settings)
        data = tiny.data(global_batch_size=ROWS, sequence_length=60)
        trainer.fit(tiny.module(), data, ckpt_path=resume)
        assert len(data.rows("train")) // ROWS == EPOCH
        return notes, reads

    return run


VALIDATE = {"check_val_every_n_epoch": None, "limit_val_batches": 1}


@pytest.mark.parametrize(
    ("before", "after", "options"),
    [
        (1, 1, {"val_check_interval": 2, **VALIDATE}),
        (2, 2, {"val_check_interval": 3, **VALIDATE}),
        (4, 4, {"val_check_interval": 2, **VALIDATE}),
        (1, 4, {"val_check_interval": 5, **VALIDATE}),
        (4, 1, {"val_check_interval": 6, **VALIDATE}),
        (4, 2, {"val_check_interval": 10, **VALIDATE}),
        (2, 1, {"max_steps": -1, "max_epochs": 3, "limit_val_batches": 1}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_training_goes_on_behind_the_last_whole_step(
    tiny: Tiny, fit: Callable[..., tuple[Notes, Reads]], before: int, after: int, options: dict[str, Any]
) -> None:
    """From every step, validation (in the middle of a step too) and end of a pass."""
    saver = Saver(tiny.folder)
    whole, reads = fit(before, saver, **options)
    last = len(whole.losses)
    assert list(whole.losses) == list(range(last))
    assert reads.samples == list(range(last * ROWS))
    assert {name.split("-")[0] for name in saver.steps} == {*MOMENTS, "on_train_end"}
    for name, steps in saver.steps.items():
        if steps not in (0, 1, 5, 6, 10):  # the first ones, and around the ends of two passes
            continue
        rest, read = fit(after, resume=tiny.folder / name, **options)
        assert read.samples == list(range(steps * ROWS, last * ROWS)), name
        assert list(rest.losses) == list(range(steps, last)), name
        assert rest.losses == pytest.approx({i: whole.losses[i] for i in rest.losses}, rel=1e-5), name
        if before == after:
            assert rest.losses == {i: whole.losses[i] for i in rest.losses}, name
            assert set(whole.bounds) >= set(rest.bounds) >= {bound for bound in whole.bounds if bound >= steps}, name
        assert rest.passes == whole.passes, name


def test_a_run_that_ended_goes_on_for_longer(tiny: Tiny, fit: Callable[..., tuple[Notes, Reads]]) -> None:
    for options in ({"max_steps": 10}, {"max_steps": 7}, {"max_steps": -1, "max_epochs": 2}):
        saver = Saver(tiny.folder)
        fit(1, saver, **options)
        longer = {key: value * 2 if value > 0 else value for key, value in options.items()}
        for name, steps in list(saver.steps.items())[-3:]:
            rest, _ = fit(2, resume=tiny.folder / name, **longer)
            assert list(rest.losses) == list(range(steps, max(longer.values()) * (5 if "max_epochs" in longer else 1)))
