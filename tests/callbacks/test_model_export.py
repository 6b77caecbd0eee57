"""A fit ends with a folder that loads anywhere, and never writes over another."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

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
