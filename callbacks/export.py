"""Export at the end of training."""

from pathlib import Path
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from coda.checkpoint import build_model, load_model
from coda.export import check_settings, export
from coda.release.record import record_of, runs_in, runs_of


class ModelExport(Callback):
    """Writes the trained model as a Hugging Face folder when a fit ends (see :mod:`coda.export`).

    Args:
        folder: Where to; None is ``export`` inside the logger's folder. A number is appended if it exists.
        enabled: False writes nothing.
        best: Write the weights of the best checkpoint, by the metric that a ModelCheckpoint monitors, instead of the last.
        dtype: Cast the weights; None keeps them as they are.
        layout: ``coda``, or ``released`` for a folder that the code of the released CoDA models reads as well.
        max_shard_size: Weights are split into files of at most this size.
        license: For the model card; None is Qwen3's if the weights descend from a Qwen3, and otherwise none.
        verify: Load the folder in a clean process, and compare logits, before it gets its name.
    """

    def __init__(
        self,
        folder: str | None = None,
        enabled: bool = True,
        best: bool = False,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        layout: Literal["coda", "released"] = "coda",
        max_shard_size: str = "5GB",
        license: str | None = None,
        verify: bool = True,
    ) -> None:
        self.folder = folder
        self.enabled = enabled
        self.best = best
        self.options = {} if dtype is None else {"dtype": dtype}
        self.settings: dict[str, Any] = {"layout": layout, "max_shard_size": max_shard_size}
        check_settings(**self.settings)
        self.settings |= {"license": license, "verify": verify}

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
        """Put the weights together, in which every process takes part, and export on the first."""
        log_dir = trainer.log_dir  # on every process: the first one tells it to the others
        if not self.enabled or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        paths = [callback.best_model_path for callback in _checkpoints(trainer) if callback.monitor]
        best = trainer.strategy.broadcast(paths[0] if self.best else "")
        weights = {} if best else full_weights(trainer)
        if trainer.is_global_zero:
            output = _unused(Path(self.folder or Path(log_dir or trainer.default_root_dir) / "export"))
            self._export(pl_module, best, weights, output)
        trainer.strategy.barrier()

    def _export(self, pl_module: Any, best: str, weights: dict[str, Tensor], output: Path) -> None:
        if best:
            model, tokenizer = load_model(best, **self.options)
            runs = runs_of(best)
            rank_zero_info(f"the best weights are those of {best}")
        else:
            record = record_of(pl_module)
            model = build_model(record, weights, "this run", **self.options)
            tokenizer, runs = pl_module.trainer.datamodule.tokenizer, runs_in(record["run"])
        export(model, tokenizer, output, runs, **self.settings)
        rank_zero_info(f"exported to {output}; try: python -m coda.generate --model {output} --prompt 'def main('")


def full_weights(trainer: Trainer) -> dict[str, Tensor]:
    """The whole state of the LightningModule in main memory, whatever the strategy shards; on the first process.

    Every process must call this.
    """
    strategy: Any = trainer.strategy
    if strategy.root_device.type == "xla":
        weights: dict[str, Tensor] = strategy.whole_state_dict()
        return weights
    state: dict[str, Any] = get_model_state_dict(
        strategy.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return state


def _unused(base: Path) -> Path:
    """``base``, with a number if it exists."""
    output, number = base, 1
    while output.exists():
        number += 1
        output = base.with_name(f"{base.name}-{number}")
    return output


def _checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint)]  # type: ignore[attr-defined]
