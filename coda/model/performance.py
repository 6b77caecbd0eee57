"""What trades memory for time in training, or compilation for speed; neither changes the model nor its weights' names."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from coda.model.modeling_coda import CoDALanguageModel

# Results worth their memory: those of matrix products and of attention. The rest of a layer is cheap to compute again.
KEPT = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)


def checkpoint_layers(model: CoDALanguageModel, selective: bool) -> None:
    """Recompute each layer in the backward pass; ``selective`` keeps the results of matrix products and attention."""
    selecting = {"context_fn": _selective_contexts} if selective else {}
    model.activation_checkpointing_enable({"use_reentrant": False, **selecting})


def compile_layers(model: CoDALanguageModel, mode: str | None = None) -> None:
    """Compile the decoder layer, once for all of them, for training alone; ``mode`` is one of torch.compile's.

    Evaluation and sampling stay eager: with lengths and caches of their own they would be compiled time and again.
    """
    for layer in model.model.layers:
        layer.compile(mode=mode)  # in place: a wrapper would change the names in the state dict
    stances: list[Any] = []

    def enter(module: nn.Module, args: Any) -> None:
        if not module.training:
            stances.append(torch.compiler.set_stance("force_eager"))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if not module.training and stances:
            stances.pop().__exit__(None, None, None)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)


def _selective_contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
