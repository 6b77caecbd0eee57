"""A small fit on any strategy, in this process or (as a script, with the settings as JSON) in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor.debug import CommDebugMode
from transformers import Adafactor

from callbacks import DiffusionSampling, GradientNorm
from coda.model import ScratchBackbone
from coda.model.modeling_coda import untie
from coda.module import DiffusionModule
from coda.parallel import FSDP2Strategy
from tests.conftest import Tiny

REPOSITORY = Path(__file__).resolve().parent.parent
ADAFACTOR = {"relative_step": False, "scale_parameter": False, "warmup_init": False}


class Notes(DummyLogger):
    """What is logged, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, list[float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:  # type: ignore[override]
        for name, value in metrics.items():
            self.values.setdefault(name, []).append(float(value))


class Untied(ScratchBackbone):
    """As released weights are: with a head of their own, whatever the config says."""

    def build(self, tokenizer: Any, load_weights: bool = True) -> Any:
        model = super().build(tokenizer, load_weights)
        untie(model)
        torch.nn.init.normal_(model.lm_head.weight, std=0.1)
        return model


class Traffic(Callback):
    """Counts the collectives of every micro-batch."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_before_backward(self, *_: Any) -> None:
        self.mode = CommDebugMode()
        self.mode.__enter__()

    def on_after_backward(self, *_: Any) -> None:
        self.mode.__exit__(None, None, None)
        self.counts.append(sum(n for op, n in self.mode.get_comm_counts().items() if "reduce" in str(op)))


def optimizer(name: str) -> Any:
    if name == "adamw":
        return lambda groups: torch.optim.AdamW(groups, lr=1e-2)
    return lambda groups: Adafactor(groups, lr=1e-2, **ADAFACTOR)


def fit(settings: dict[str, Any]) -> dict[str, Any]:
    """Train for some steps of four micro-batches; the weights, unsharded, and what was logged."""
    tiny = Tiny(Path(settings["corpus"]), Path(settings["folder"]))
    sharded = FSDP2Strategy(**settings.get("sharding", {}))
    strategy = {"one": "auto", "ddp": "ddp", "fsdp2": sharded}[settings["strategy"]]
    devices = 1 if strategy == "auto" else 2
    notes, traffic = Notes(), Traffic()
    watch = DiffusionSampling(max_new_tokens=4, exact_match_rows=2, temperature=0.0, top_p=None)
    keep = ModelCheckpoint(tiny.folder, filename="{step}", every_n_train_steps=2, save_top_k=-1, save_last=True)
    options = {"max_steps": settings.get("steps", 4), "precision": settings.get("precision", "32-true")}
    trainer = tiny.trainer(
        watch, keep, GradientNorm(), *([traffic] if settings.get("count") else []),
        strategy=strategy, devices=devices, accumulate_grad_batches=4 // devices, gradient_clip_val=0.5,
        logger=notes, log_every_n_steps=1, check_val_every_n_epoch=None, enable_checkpointing=True,
        val_check_interval=8 // devices, limit_val_batches=4 // devices, **options,
    )  # fmt: skip
    kind = Untied if settings.get("untied") else ScratchBackbone
    # 33 and 63 divide into unequal shares.
    backbone = kind(33, 63, 2, 2, 1, 16, max_position_embeddings=128, **settings.get("backbone", {}))
    seed_everything(0)
    module = DiffusionModule(backbone, tiny.module().masking, optimizer(settings["optimizer"]))
    trainer.fit(module, tiny.data(), ckpt_path=settings.get("resume"))
    weights = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))
    return {"weights": weights, "logged": notes.values, "traffic": traffic.counts}


def run(**settings: Any) -> dict[str, Any]:
    """:func:`fit` in processes of its own."""
    output = Path(settings["folder"]) / f"{settings['strategy']}.pt"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, json.dumps(settings, default=str), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return torch.load(output, weights_only=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = fit(json.loads(sys.argv[1]))
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        torch.save(result, sys.argv[2])
