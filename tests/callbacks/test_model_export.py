"""A fit ends with a folder that loads anywhere, and never writes over another."""

import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import ModelExport
from coda.checkpoint import load_model
from tests.conftest import Tiny


def test_the_folder_loads_as_the_trained_model(tiny: Tiny) -> None:
    trainer = tiny.fit(ModelExport(), max_steps=2, limit_val_batches=0)
    model, tokenizer = load_model(str(Path(trainer.log_dir or "") / "export"))
    trained: Any = trainer.lightning_module.backbone
    ids = torch.arange(4, 20)[None]
    assert torch.equal(model.eval()(ids).logits, trained.eval()(ids).logits)
    assert tokenizer.get_vocab() == trainer.datamodule.tokenizer.get_vocab()  # type: ignore[attr-defined]


def test_it_says_where_and_what_next(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        tiny.fit(ModelExport(str(tiny.folder / "mine")), max_steps=1, limit_val_batches=0)
    (line,) = (message for message in caplog.messages if "exported" in message)
    assert f"python -m coda.generate --model {tiny.folder / 'mine'}" in line


def test_an_existing_folder_is_not_touched(tiny: Tiny) -> None:
    folder = tiny.folder / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    for _ in range(2):
        tiny.fit(ModelExport(str(folder)), max_steps=1, limit_val_batches=0)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert (tiny.folder / "mine-2" / "config.json").is_file()
    assert (tiny.folder / "mine-3" / "config.json").is_file()


@pytest.mark.parametrize("options", [{"enabled": False}, {"fast_dev_run": True}], ids=["disabled", "fast_dev_run"])
def test_it_can_be_left_out(tiny: Tiny, options: dict[str, bool]) -> None:
    callback = ModelExport(str(tiny.folder / "mine"), enabled=options.pop("enabled", True))
    tiny.fit(callback, max_steps=1, limit_val_batches=0, **options)
    assert not (tiny.folder / "mine").exists()


def test_other_processes_take_part_in_finding_the_folder_but_write_nothing(tiny: Tiny) -> None:
    """Lightning's log_dir waits until all processes have asked for it."""
    asked = []

    class Worker(SimpleNamespace):
        is_global_zero, fast_dev_run, default_root_dir = False, False, str(tiny.folder)

        @property
        def log_dir(self) -> str:
            asked.append(True)
            return str(tiny.folder)

    ModelExport().on_fit_end(Worker(), SimpleNamespace())  # type: ignore[arg-type]
    assert asked
    assert not (tiny.folder / "export").exists()


class Scores(Callback):
    """Logs a score at each validation, as given for its step, and keeps the weights of that moment."""

    def __init__(self, scores: dict[int, float]) -> None:
        self.scores = scores
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("score", self.scores[trainer.global_step])
        self.weights[trainer.global_step] = copy.deepcopy(pl_module.backbone.state_dict())


def exported(tiny: Tiny, *callbacks: Callback, **options: Any) -> dict[str, torch.Tensor]:
    """The weights that a fit of six steps writes."""
    export = ModelExport(str(tiny.folder / "mine"), best=True)
    tiny.fit(*callbacks, export, **{"max_steps": 6, "enable_checkpointing": True, **options})
    return load_model(str(tiny.folder / "mine"))[0].state_dict()


@pytest.mark.parametrize(("mode", "best"), [("min", 4), ("max", 2)])
def test_the_best_weights_are_exported_if_asked_for(
    tiny: Tiny, caplog: pytest.LogCaptureFixture, mode: str, best: int
) -> None:
    """By the metric that is monitored; a checkpoint of the last steps stands beside it."""
    scores = Scores({2: 3.0, 4: 1.0, 6: 2.0})
    last = ModelCheckpoint(tiny.folder / "last", save_last=True, every_n_train_steps=1, save_top_k=1)
    keeper = ModelCheckpoint(tiny.folder / "best", monitor="score", mode=mode, filename="best")
    with caplog.at_level(logging.INFO):
        weights = exported(tiny, scores, last, keeper, val_check_interval=2)
    assert all(torch.equal(value, scores.weights[best][key]) for key, value in weights.items())
    assert not any(torch.equal(value, scores.weights[6][key]) for key, value in weights.items())
    assert f"the best weights are those of {tiny.folder / 'best' / 'best.ckpt'}" in caplog.messages


def test_a_run_that_was_never_validated_exports_its_last_weights(tiny: Tiny) -> None:
    keeper = ModelCheckpoint(tiny.folder / "best", monitor="score")
    trainer_weights: dict[str, torch.Tensor] = {}

    class Keep(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            trainer_weights.update(copy.deepcopy(pl_module.backbone.state_dict()))

    weights = exported(tiny, Keep(), keeper, limit_val_batches=0)
    assert all(torch.equal(value, trainer_weights[key]) for key, value in weights.items())


@pytest.mark.parametrize("keeper", [None, {"every_n_train_steps": 1}], ids=["no checkpoints", "none by a metric"])
def test_the_best_needs_somebody_who_keeps_it(tiny: Tiny, keeper: dict[str, int] | None) -> None:
    """Found out before the first step."""
    callbacks = [] if keeper is None else [ModelCheckpoint(tiny.folder / "kept", **keeper)]
    trainer = tiny.trainer(*callbacks, ModelExport(best=True), max_steps=2, enable_checkpointing=bool(callbacks))
    with pytest.raises(ValueError, match=r"export\.best is true, but no ModelCheckpoint .* monitors a metric; add one"):
        trainer.fit(tiny.module(), tiny.data())
    assert trainer.global_step == 0


def test_without_an_export_nobody_needs_to_keep_the_best(tiny: Tiny) -> None:
    assert tiny.fit(ModelExport(enabled=False, best=True), max_steps=1, limit_val_batches=0).global_step == 1
