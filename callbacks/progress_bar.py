"""The progress bar."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class DiffusionProgressBar(TQDMProgressBar):
    """Shows loss, tokens per second, the held-out bound and the current masking schedule, as of the last logging step."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float | dict[str, float]]:
        """Read what was logged, which waits for nothing."""
        logged = trainer.logged_metrics
        items: dict[str, int | str | float | dict[str, float]] = {}
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
