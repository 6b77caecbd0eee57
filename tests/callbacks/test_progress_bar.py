"""What the bar shows, and that showing it rarely waits for the device."""

from typing import Any

import pytest
import torch
from lightning import Trainer

from callbacks import DiffusionMonitor, DiffusionProgressBar, Throughput
from callbacks.progress_bar import read
from coda.masking import PerEpoch, ProgressiveMasking
from tests.conftest import Tiny


@pytest.mark.parametrize(
    ("logged", "items"),
    [
        ({}, {}),
        ({"train/loss": 2.34567, "epoch": 1.0}, {"loss": "2.346"}),
        ({"val/bound": 1.0}, {"bound": "1.000"}),
        ({"throughput/tokens_per_sec": 16543.2}, {"tok/s": "16,543"}),
        ({"schedule/S2": 0.05, "schedule/S3": 0.1, "schedule/S1": 0.01}, {"S1:S2:S3": "1:5:10%"}),
        ({"schedule/S3": 0.125}, {"S": "12.5%"}),
    ],
    ids=["nothing", "loss", "bound", "throughput", "three schedules", "one schedule"],
)
def test_metrics_become_labels(logged: dict[str, float], items: dict[str, str]) -> None:
    assert read({name: torch.tensor(value) for name, value in logged.items()}) == items


def fit(tiny: Tiny, **options: Any) -> tuple[Trainer, DiffusionProgressBar]:
    bar = DiffusionProgressBar()
    masking = ProgressiveMasking(PerEpoch([0.1, 0.2]), 0.3, 0.4, [2])
    callbacks = (DiffusionMonitor(), Throughput(), bar)
    trainer = tiny.fit(*callbacks, masking=masking, enable_progress_bar=True, **{"max_steps": 6, **options})
    return trainer, bar


def test_a_fit_shows_all_of_them(tiny: Tiny) -> None:
    trainer, bar = fit(tiny, val_check_interval=6)
    assert set(bar.items) == {"loss", "bound", "tok/s", "S1:S2:S3"}
    assert bar.items["S1:S2:S3"] == "20:30:40%"
    assert bar.items["bound"] == f"{float(trainer.callback_metrics['val/bound']):.3f}"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_numbers_are_read_on_logging_steps_only(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, accumulate: int) -> None:
    readings = []

    def counted(logged: dict[str, Any]) -> dict[str, Any]:
        readings.append(sorted(logged))
        return {}

    monkeypatch.setattr("callbacks.progress_bar.read", counted)
    fit(tiny, log_every_n_steps=3, limit_val_batches=0, accumulate_grad_batches=accumulate)
    assert len(readings) == 2
    assert all("train/loss" in names and "schedule/S1" in names for names in readings)


def test_the_bar_moves_on_other_steps_too(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    _, bar = fit(tiny, max_steps=5, log_every_n_steps=3, limit_val_batches=0)
    assert bar.train_progress_bar.n == 5
    assert "5/5" in capsys.readouterr().out
