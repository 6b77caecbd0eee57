"""Export at the end of training."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from coda.checkpoint import load_model
from coda.export import export


class ModelExport(Callback):
    """Writes the trained model as a Hugging Face folder when a fit ends (see :mod:`coda.export`).

    Args:
        folder: Where to; None is ``export`` inside the logger's folder. A number is appended if it exists.
        enabled: False writes nothing.
        best: Write the weights of the best checkpoint, by the metric that a ModelCheckpoint monitors, instead of the last.
    """

    def __init__(self, folder: str | None = None, enabled: bool = True, best: bool = False) -> None:
        self.folder = folder
        self.enabled = enabled
        self.best = best

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out before the first step, not after the last, what is missing.

        Raises:
            ValueError: If the best is to be written, but nobody keeps it.
        """
        if self.enabled and self.best and not any(callback.monitor for callback in _checkpoints(trainer)):
            raise ValueError(
                "export.best is true, but no ModelCheckpoint in trainer.callbacks monitors a metric; add one, or export "
                "the last weights"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export on the first process."""
        log_dir = trainer.log_dir  # on every process: the first one tells it to the others
        if not self.enabled or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        output = base = Path(self.folder or Path(log_dir or trainer.default_root_dir) / "export")
        number = 1
        while output.exists():
            number += 1
            output = base.with_name(f"{base.name}-{number}")
        model, tokenizer = pl_module.backbone, trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        paths = [callback.best_model_path for callback in _checkpoints(trainer) if callback.monitor]
        if self.best and paths[0]:
            model, _ = load_model(paths[0])
            rank_zero_info(f"the best weights are those of {paths[0]}")
        export(model, tokenizer, output)  # type: ignore[arg-type]
        rank_zero_info(f"exported to {output}; try: python -m coda.generate --model {output} --prompt 'def main('")


def _checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint)]  # type: ignore[attr-defined]
