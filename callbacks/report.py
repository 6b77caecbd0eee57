"""The last line of a run."""

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info


class BoundReport(Callback):
    """Prints, after training, the held-out bound and the corpus's unigram entropy: what a model gains from context."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print both and their difference."""
        bound = trainer.callback_metrics.get("val/bound")
        store = getattr(trainer.datamodule, "store", None)  # type: ignore[attr-defined]
        if bound is None or store is None:
            return
        entropy = store.unigram_entropy
        rank_zero_info(
            f"held-out bound {float(bound):.3f} nats per token; unigram entropy of the corpus {entropy:.3f}; "
            f"difference {entropy - float(bound):.3f}"
        )
