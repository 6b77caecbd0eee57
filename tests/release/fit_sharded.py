"""A fit of two processes that shard the model: ``python fit_sharded.py CORPUS FOLDER``, started once per process.

Writes a sharded checkpoint, an export, and the whole weights, gathered by other means, to compare them with.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from callbacks import ModelExport
from coda.adapter import LoRA
from coda.parallel import FSDP2Strategy
from tests.conftest import Tiny


def gathered(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()  # type: ignore[operator]
        for name, value in module.state_dict().items()
    }


def main(corpus: str, folder: str, adapter: str = "") -> None:
    tiny = Tiny(Path(corpus), Path(folder))
    torch.manual_seed(0)
    options: dict[str, Any] = {"adapter": LoRA(rank=2)} if adapter else {}
    made = tiny.module(**options)
    keeper = ModelCheckpoint(Path(folder) / "checkpoints", filename="last", every_n_train_steps=2)
    trainer = tiny.trainer(
        keeper,
        ModelExport(str(Path(folder) / "export"), verify=False),
        strategy=FSDP2Strategy(),
        devices=2,
        max_steps=2,
        limit_val_batches=0,
        enable_checkpointing=True,
    )
    trainer.fit(made, tiny.data())
    embedding: Any = made.backbone.model.embed_tokens.weight
    assert embedding.to_local().numel() < embedding.numel(), "nothing is sharded"
    weights = gathered(made.backbone)
    if trainer.is_global_zero:
        torch.save(weights, Path(folder) / "weights.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
