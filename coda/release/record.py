"""What a checkpoint tells of the run that wrote it: plain data, from which the model card is written."""

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
import transformers

import coda
from coda.checkpoint import RECORD, describe, is_checkpoint, read_checkpoint
from coda.data.datamodule import PreparedDataModule
from coda.model import PretrainedBackbone

if TYPE_CHECKING:
    from coda.module import DiffusionModule

FILE = "training.json"  # the records of all runs in an exported folder
TRAINER = (
    "max_steps",
    "max_epochs",
    "precision",
    "devices",
    "num_nodes",
    "accumulate_grad_batches",
    "gradient_clip_val",
)
METRICS = ("val/", "test/", "train/")


def record_of(module: "DiffusionModule") -> dict[str, Any]:
    """What a checkpoint of ``module`` records beside weights: config, adapter, tokenizer and the run."""
    tokenizer = module.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
    return describe(module.backbone, tokenizer) | {"run": describe_run(module)}


def describe_run(module: "DiffusionModule") -> dict[str, Any]:
    """The settings that shaped the weights of ``module``, its data, how far it is and its metrics; see :func:`runs_of`."""
    trainer: Any = module.trainer
    data = trainer.datamodule
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(METRICS)}
    return {
        "name": str(trainer.logger.name or "training") if trainer.logger else "training",
        "base": _base(module),
        "config": _recipe(module),
        "steps": trainer.global_step,
        "batch": {"rows": data.global_batch_size, "length": data.sequence_length},
        "corpora": _corpora(data) if isinstance(data, PreparedDataModule) else {},
        "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        "versions": {
            "coda": coda.__version__,
            **{library.__name__: str(library.__version__) for library in (torch, lightning, transformers)},
        },
        "earlier": list(module.earlier),
    }


def runs_of(source: str) -> list[dict[str, Any]]:
    """Records of the runs behind the weights of ``source`` (as in :func:`coda.checkpoint.load_model`), first to last.

    There are none for weights that were not trained here.
    """
    if is_checkpoint(source):
        run = read_checkpoint(source)[RECORD].get("run")
        return runs_in(run) if run else []
    file = Path(source) / FILE
    return list(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []


def runs_in(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs before ``run``, and that run."""
    return [*run["earlier"], {name: value for name, value in run.items() if name != "earlier"}]


def _base(module: "DiffusionModule") -> str | None:
    """The name on the hub of the model that the run starts from, if that is where it comes from."""
    backbone = module.backbone_source
    source = module.init_from or (backbone.path if isinstance(backbone, PretrainedBackbone) else None)
    named = source is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not Path(source).exists()
    return source if named and not is_checkpoint(str(source)) else None


def _recipe(module: "DiffusionModule") -> dict[str, Any]:
    """What of the configuration shaped the weights, and nothing of the machine; without one, the names of the parts."""
    if module.config is None:
        parts = ("masking", "objective", "lr_schedule", "adapter", "annealing")
        made = {part: getattr(module, part) for part in parts}
        return {"model": {part: _class_path(value) for part, value in made.items() if value is not None}}
    trainer = module.config.get("trainer", {})
    return {
        **{name: module.config[name] for name in ("seed_everything", "model", "data") if name in module.config},
        "trainer": {name: trainer[name] for name in TRAINER if trainer.get(name) is not None},
    }


def _class_path(part: object) -> dict[str, str]:
    return {"class_path": f"{type(part).__module__}.{type(part).__qualname__}"}


def _corpora(data: PreparedDataModule) -> dict[str, dict[str, float]]:
    """Tokens of each corpus, and its share of the samples."""
    rows, known = data.rows("train"), data.store.manifest["corpora"]
    shares, names = rows.mixture.shares, [stream.corpus for stream in rows.streams]
    return {
        name: {"tokens": known[name]["tokens"]["train"], "share": share / sum(shares)}
        for name, share in zip(names, shares, strict=True)
    }
