"""The progress bar."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from callbacks.steps import is_logged

Items = dict[str, int | str | float | dict[str, float]]


class DiffusionProgressBar(TQDMProgressBar):
    """Shows loss, tokens per second, the held-out bound and the masking schedule, as of the last logging step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.items: Items = {}
        self.read_at = 0

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Items:
        """Read what was logged, on logging steps and after validation only: reading waits for the device."""
        step = trainer.global_step
        if trainer.validating or (step != self.read_at and is_logged(trainer, step)):
            self.items, self.read_at = read(trainer.logged_metrics), step
        return self.items


def read(logged: dict[str, Any]) -> Items:
    """Turn logged metrics into the labels and texts of the bar."""
    items: Items = {}
    for label, name, form in (
        ("loss", "train/loss", "{:.3f}"),
        ("bound", "val/bound", "{:.3f}"),
        ("tok/s", "throughput/tokens_per_sec", "{:,.0f}"),
    ):
        if name in logged:
            items[label] = form.format(float(logged[name]))
    shares = [f"{100 * float(value):.3g}" for name, value in sorted(logged.items()) if name.startswith("schedule/")]
    if shares:
        items["S1:S2:S3" if len(shares) == 3 else "S"] = ":".join(shares) + "%"
    return items
