"""A fit ends with a folder that loads anywhere, and never writes over another."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

import coda.export
from callbacks import ModelExport
from coda.checkpoint import load_model
from coda.release.layout import write_files
from tests.conftest import Tiny


def test_the_folder_loads_as_the_trained_model(tiny: Tiny) -> None:
    trainer = tiny.fit(ModelExport(verify=False), max_steps=2, limit_val_batches=0)
    model, tokenizer = load_model(str(Path(trainer.log_dir or "") / "export"))
    trained: Any = trainer.lightning_module.backbone
    ids = torch.arange(4, 20)[None]
    assert torch.equal(model.eval()(ids).logits, trained.eval()(ids).logits)
    assert tokenizer.get_vocab() == trainer.datamodule.tokenizer.get_vocab()  # type: ignore[attr-defined]


def test_it_says_where_and_what_next(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        tiny.fit(ModelExport(str(tiny.folder / "mine"), verify=False), max_steps=1, limit_val_batches=0)
    (line,) = (message for message in caplog.messages if "exported" in message)
    assert f"python -m coda.generate --model {tiny.folder / 'mine'}" in line


def test_an_existing_folder_is_not_touched(tiny: Tiny) -> None:
    folder = tiny.folder / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    for _ in range(2):
        tiny.fit(ModelExport(str(folder), verify=False), max_steps=1, limit_val_batches=0)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert (tiny.folder / "mine-2" / "config.json").is_file()
    assert (tiny.folder / "mine-3" / "config.json").is_file()


@pytest.mark.parametrize("options", [{"enabled": False}, {"fast_dev_run": True}], ids=["disabled", "fast_dev_run"])
def test_it_can_be_left_out(tiny: Tiny, options: dict[str, bool]) -> None:
    callback = ModelExport(str(tiny.folder / "mine"), enabled=options.pop("enabled", True))
    tiny.fit(callback, max_steps=1, limit_val_batches=0, **options)
    assert not (tiny.folder / "mine").exists()


@pytest.mark.slow
def test_the_folder_is_checked_before_it_gets_its_name(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.fit(ModelExport(str(tiny.folder / "good")), max_steps=1, limit_val_batches=0)
    assert (tiny.folder / "good" / "config.json").is_file()

    def spoil(*arguments: Any) -> None:
        write_files(*arguments)
        (arguments[2] / "selection_coda.py").unlink()

    monkeypatch.setattr(coda.export, "write_files", spoil)
    with pytest.raises(ValueError, match="does not load in a process without this package"):
        tiny.fit(ModelExport(str(tiny.folder / "bad")), max_steps=1, limit_val_batches=0)
    assert not (tiny.folder / "bad").exists()


def test_type_layout_and_size_are_chosen(tiny: Tiny) -> None:
    options = {"dtype": "bfloat16", "layout": "released", "max_shard_size": "20KB", "license": "mit"}
    export = ModelExport(str(tiny.folder / "mine"), **options, verify=False)  # type: ignore[arg-type]
    trainer = tiny.fit(export, max_steps=1, limit_val_batches=0)
    trained: Any = trainer.lightning_module.backbone
    model, _ = load_model(str(tiny.folder / "mine"))
    expected = {name: value.bfloat16() for name, value in trained.state_dict().items()}
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert next(trained.parameters()).dtype == torch.float32, "the model that was trained is cast"
    assert len(list((tiny.folder / "mine").glob("*.safetensors"))) > 1
    assert "rope_theta" in json.loads((tiny.folder / "mine" / "config.json").read_text())
    assert "license: mit" in (tiny.folder / "mine" / "README.md").read_text()


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
    export = ModelExport(str(tiny.folder / "mine"), best=True, verify=False)
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
