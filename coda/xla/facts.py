"""What all hosts of a run must have in common."""

import json
from typing import TYPE_CHECKING

import lightning
import torch
import transformers
from lightning import Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from coda.xla.consensus import digest

if TYPE_CHECKING:
    from torch_xla.distributed.spmd import Mesh


def facts_of(trainer: Trainer, mesh: "Mesh") -> dict[str, str]:
    """Fingerprints of config, mesh, data and seed, by names that a person understands."""
    versions = {
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "transformers": transformers.__version__,
    }
    facts = {
        "the mesh": " x ".join(f"{axis} {size}" for axis, size in mesh.shape().items()),
        "the versions of the libraries": json.dumps(versions),
        "the seed (seed_everything)": str(torch.initial_seed()),
        "the length of training": f"{trainer.max_steps} steps, {trainer.accumulate_grad_batches} micro-batches each",
    }
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SaveConfigCallback):
            facts["the config"] = digest(callback.parser.dump(callback.config))
    data = trainer.datamodule  # type: ignore[attr-defined]
    if trainer.state.fn == TrainerFn.FITTING and hasattr(data, "order"):
        facts["the data"] = digest(json.dumps(data.order(), sort_keys=True, default=str))
    return facts
