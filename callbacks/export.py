"""Export at the end of training."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from coda.export import export


class ModelExport(Callback):
    """Writes the trained model as a Hugging Face folder when a fit ends (see :mod:`coda.export`).

    Args:
        folder: Where to; None is ``export`` inside the logger's folder. A number is appended if it exists.
        enabled: False writes nothing.
    """

    def __init__(self, folder: str | None = None, enabled: bool = True) -> None:
        self.folder = folder
        self.enabled = enabled

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
        export(pl_module.backbone, trainer.datamodule.tokenizer, output)  # type: ignore[arg-type, attr-defined]
        rank_zero_info(f"exported to {output}; try: python -m coda.generate --model {output} --prompt 'def main('")
