"""Small fits under the strategy, for the programs of these tests. The first argument of a program is a new folder."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning import Callback, Trainer
from transformers import Adafactor

from coda.data import CorpusDataModule, TextFiles
from coda.masking import MaskingStrategy, RandomMasking
from coda.model import ScratchBackbone
from coda.module import DiffusionModule
from coda.optimization import LinearDecay
from coda.steps import ends_step
from coda.xla import ShardingMap, XLASPMDStrategy

warnings.filterwarnings("ignore")
ROOT = Path(__file__).parents[2]
MESHES = {"1,4,1": {"fsdp": 4}, "2,2,1": {"data": 2, "fsdp": 2}, "1,2,2": {"fsdp": 2, "tensor": 2}, "1,1,1": {}}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


def adamw(groups: Any) -> torch.optim.Optimizer:
    # On the device its corrections are float32, in which 1 - 0.999 is only right to four digits.
    return torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))


def adafactor(groups: Any) -> torch.optim.Optimizer:
    return Adafactor(groups, lr=3e-3, relative_step=False, scale_parameter=False, warmup_init=False)


def two_axes() -> ShardingMap:
    """The map for FSDP x tensor that the repository ships."""
    settings = yaml.safe_load((ROOT / "configs" / "sharding" / "qwen3_fsdp_tensor.yaml").read_text())
    return ShardingMap(**settings["init_args"])


def strategy(mesh: str, kind: type[XLASPMDStrategy] = XLASPMDStrategy, **options: Any) -> XLASPMDStrategy:
    """The strategy on one of ``MESHES``, with weights divided over tensor where there is such an axis."""
    if "tensor" in MESHES[mesh]:
        options = {"sharding": two_axes(), **options}
    return kind(MESHES[mesh], **{"precision": "32-true", **options})


def folder() -> Path:
    return Path(sys.argv[1])


def data(segments: bool = False, global_batch_size: int = 8, **options: Any) -> CorpusDataModule:
    """Rows of 32 tokens of some generated Python."""
    corpus = folder() / "corpus"
    if not corpus.exists():
        corpus.mkdir(parents=True)
        for i in range(40):
            (corpus / f"{i}.py").write_text(
                f"def f{i}(a, b):\n    return a * {i} + b\n\n\nclass C{i}:\n    x = {i}\n" * 6
            )
    settings = {"vocab_size": 280, "val_fraction": 0.25, "cache_dir": str(folder() / "cache"), **options}
    return CorpusDataModule(32, global_batch_size, [TextFiles([str(corpus)])], segments=segments, **settings)


def module(
    optimizer: Callable[[Any], torch.optim.Optimizer] = adamw, masking: MaskingStrategy | None = None, **sizes: Any
) -> DiffusionModule:
    backbone = ScratchBackbone(**{**SIZES, **HEADS, **sizes})
    return DiffusionModule(backbone, masking or RandomMasking(), optimizer=optimizer, lr_schedule=LinearDecay(warmup=3))


class Losses(Callback):
    """Keeps the loss of every optimizer step; reading it waits for the device."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if ends_step(trainer, batch_idx):
            self.values.append(float(trainer.callback_metrics["train/loss"]))


def trainer(chosen: XLASPMDStrategy | None, *callbacks: Callback, **options: Any) -> Trainer:
    """A trainer under ``chosen``, or on the CPU without a strategy."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {"logger": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0, "limit_val_batches": 0}
    place = {"accelerator": "cpu", "devices": 1} if chosen is None else {"strategy": chosen}
    settings |= {"gradient_clip_val": 1.0, "default_root_dir": folder(), **quiet, **place}
    return Trainer(callbacks=list(callbacks), **{**settings, **options})


def fit(
    chosen: XLASPMDStrategy | None,
    *callbacks: Callback,
    model: DiffusionModule | None = None,
    segments: bool = False,
    ckpt_path: Any = None,
    **options: Any,
) -> list[float]:
    """Train with seed 0; returns the loss of every step."""
    L.seed_everything(0, verbose=False)
    losses = Losses()
    runner = trainer(chosen, losses, *callbacks, **options)
    runner.fit(model or module(), data(segments), ckpt_path=ckpt_path)
    return losses.values
