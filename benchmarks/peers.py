"""Peers, loaded from their own checkouts, which are named by environment variables; nothing of them is in this repository.

``CODA_PEER_RELEASED``: a clone of github.com/SalesforceAIResearch/CoDA, the released model code.
``CODA_PEER_DLLM``: a clone of github.com/ZHZisZZ/dllm, its masked-diffusion trainer (needs ``accelerate``).
"""

import os
import sys
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from coda.model import CoDAConfig, CoDALanguageModel

Loss = Callable[[Tensor], Tensor]  # of token ids [B, L]


def released(config: CoDAConfig, device: torch.device) -> tuple[nn.Module, Loss]:
    """The released model, which masks, predicts and scores in its forward pass.

    Outside of the TPU its default attention is the math kernel, since the flash kernel exists on GPUs alone.
    """
    sys.path.insert(0, str(_checkout("CODA_PEER_RELEASED", "CoDALanguageModel/modeling_coda.py")))
    theirs = import_module("CoDALanguageModel.modeling_coda")
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = {name: getattr(config, name) for name in (*names, "head_dim", "vocab_size", "mask_token_id")}
    kernel = "flash_attention" if device.type == "cuda" else "math"
    options = {"attention_kernel": kernel, "sampling_eps": 1e-3, "block_masking_probability": 0.0}
    settings = theirs.CoDAConfig(**sizes, **options, pad_token_id=0, attn_implementation="eager")
    settings.rope_scaling = None  # transformers 5 fills it in
    model = theirs.CoDALanguageModel(settings).to(device).train()
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model, lambda ids: model(ids)[1]


def dllm(config: CoDAConfig, device: torch.device) -> tuple[nn.Module, Loss]:
    """dllm's ``MDLMTrainer.compute_loss`` over the same bidirectional Qwen3 as ours, in one process, without its loop."""
    root = _checkout("CODA_PEER_DLLM", "dllm/core/trainers/mdlm.py") / "dllm"
    # Their packages import every other part, and what that needs; as namespaces they give the files that are asked for.
    for name in ("", ".core", ".core.trainers", ".utils"):
        package = types.ModuleType(f"dllm{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[f"dllm{name}"] = package
    theirs = import_module("dllm.core.trainers.mdlm")
    schedulers = import_module("dllm.core.schedulers")
    model = CoDALanguageModel(config).to(device).train()
    trainer: Any = object.__new__(theirs.MDLMTrainer)
    trainer.accelerator = SimpleNamespace(device=device, is_main_process=True)
    metrics = {"nll": theirs.NLLMetric(), "ppl": theirs.PPLMetric()}
    trainer.meter = theirs.OnEvaluateMetricsCallback(trainer, metrics=metrics)
    trainer.scheduler, trainer.time_epsilon = schedulers.LinearAlphaScheduler(), 1e-3
    trainer.loss_weight_type, trainer.loss_norm_type, trainer.right_shift_logits = "scheduler", "token", False
    trainer.processing_class = SimpleNamespace(padding_side="right", mask_token_id=config.mask_token_id)
    return model, lambda ids: trainer.compute_loss(model, {"input_ids": ids, "labels": ids})


def _checkout(variable: str, file: str) -> Path:
    folder = Path(os.environ[variable]).resolve()
    if not (folder / file).is_file():
        raise ValueError(f"{variable} is {folder}, which has no {file}; give a clone of that project")
    return folder


PEERS = {"CODA_PEER_RELEASED": released, "CODA_PEER_DLLM": dllm}


def available() -> dict[str, Callable[[CoDAConfig, torch.device], tuple[nn.Module, Loss]]]:
    """The peers whose checkouts are named."""
    return {peer.__name__: peer for variable, peer in PEERS.items() if os.environ.get(variable)}
