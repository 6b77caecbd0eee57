"""A program: fits that stop after half of their steps and go on on another mesh, from either kind of checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
import torch_xla.core.xla_model as xm
from lightning import Callback, Trainer

from coda.xla.checkpointing import read_checkpoint
from tests.xla.fits import adafactor, adamw, fit, folder, module, strategy

STEPS = 8
CASES = {
    "sharded, adamw": ("2,2,1", "1,2,2", "sharded", adamw, "32-true"),
    "full, adamw": ("1,4,1", "2,2,1", "full", adamw, "32-true"),
    "sharded, adafactor": ("1,2,2", "1,4,1", "sharded", adafactor, "32-true"),
    "sharded, pure bf16": ("2,2,1", "1,4,1", "sharded", adafactor, "bf16-true"),
}


class Saved(Callback):
    """Saves half-way; on the way on, notes what was restored, and how it is divided."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.random: list[int] = []
        self.formats: list[str] = []
        self.divided = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.random.append(xm.get_rng_state())

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.path is not None and trainer.global_step == STEPS // 2:
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        for parameter, state in trainer.optimizers[0].state.items():
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.ndim:
                    self.formats.append(f"{parameter.dtype} {value.dtype}")
                    self.divided += "devices" in torch_xla_sharding(value)


def torch_xla_sharding(tensor: torch.Tensor) -> str:
    import torch_xla

    return str(torch_xla._XLAC._get_xla_sharding_spec(tensor))


def run(first: str, second: str, kind: str, optimizer: Any, precision: str, name: str) -> dict[str, Any]:
    path = folder() / f"{name}.ckpt"
    before, after = Saved(path), Saved()
    options: dict[str, Any] = {"precision": precision, "checkpoint": kind}
    whole = fit(strategy(first, **options), before, model=module(optimizer), max_steps=STEPS)
    rest = fit(strategy(second, **options), after, model=module(optimizer), max_steps=STEPS, ckpt_path=path)
    read = read_checkpoint(str(path))
    (states,) = read["optimizer_states"]
    return {
        "whole": whole,
        "rest": rest,
        "weights": len(read["state_dict"]),
        "states": len(states["state"]),
        "values": sum(len(state) for state in states["state"].values()),
        "random": [before.random[STEPS // 2], after.random[0], read["xla_rng_state"]],
        "fresh": before.random[0],
        "formats": sorted(set(after.formats)),
        "divided": [before.divided, after.divided],
        "rates": read["lr_schedulers"][0]["_last_lr"],
    }


if __name__ == "__main__":
    print("RESULT" + json.dumps({name: run(*case, name) for name, case in CASES.items()}))
