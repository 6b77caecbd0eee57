"""One compiled layer for all layers: what the compiler has to optimise no longer grows with their number."""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch._functorch.partitioners import default_partition, min_cut_rematerialization_partition
from transformers import PreTrainedModel

INSTALL = "pip install 'torch_xla[pallas]==2.9.0' torchax==0.0.7"


def scan_layers(model: PreTrainedModel, recompute: bool = False) -> None:
    """Have ``model.model.layers`` run as one loop of the device, in place; names of parameters stay as they are.

    Values and gradients are those of the layers one after the other. With a cache, and on other devices, they still run so.

    Args:
        model: A Qwen3 of transformers, all of whose layers are alike.
        recompute: Keep only what enters each layer for the backward pass, and compute the rest again. This replaces
            transformers' gradient checkpointing, which is switched off.

    Raises:
        ValueError: If jax or torchax, on which the loop's backward pass relies, are missing.
    """
    missing = [name for name in ("jax", "torchax") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"scan_layers needs {' and '.join(missing)}, not installed here: {INSTALL}")
    if any(getattr(layer, "gradient_checkpointing", False) for layer in model.model.layers):
        model.gradient_checkpointing_disable()
        recompute = True
    model.model.layers = ScannedLayers(model.model.layers, recompute)


class ScannedLayers(nn.ModuleList):
    """The layers of a model, which the model's own loop sees as a single one.

    Args:
        layers: All alike.
        recompute: See :func:`scan_layers`.
    """

    def __init__(self, layers: nn.ModuleList, recompute: bool) -> None:
        super().__init__(layers)  # keeps their names
        self.partition = _keep_inputs if recompute else default_partition
        # In a tuple, for their parameters already have their names.
        self.steps = tuple(_Step(layer) for layer in layers)

    def __getitem__(self, index: Any) -> Any:
        return [self.run] if isinstance(index, slice) else super().__getitem__(index)

    def run(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        **kwargs: Any,
    ) -> Tensor:
        """What the layers make of ``hidden_states`` [B, L, H]; arguments as those of a layer of transformers."""
        if kwargs.get("past_key_values") is not None or hidden_states.device.type != "xla":
            for layer in self:
                hidden_states = layer(
                    hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings, **kwargs
                )
            return hidden_states
        from torch_xla.experimental import scan_layers as experimental

        # The loop carries floating point alone. What a layer does not get by argument would be that of the first call.
        mask = () if attention_mask is None else (attention_mask.float(),)
        for step in self.steps:
            step.mask_dtype = None if attention_mask is None else attention_mask.dtype
        carried = (hidden_states, *position_embeddings, *mask)
        options = {"partition_fn": self.partition, "is_layer_pure": True}
        return experimental.scan_layers(self.steps, carried, **options)[0]


class _Step(nn.Module):
    """A layer as a function from what the loop carries to what it carries on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.mask_dtype: torch.dtype | None = None

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor, *mask: Tensor) -> tuple[Tensor, ...]:
        read = mask[0].to(self.mask_dtype) if mask else None
        return self.layer(hidden, attention_mask=read, position_embeddings=(cosine, sine)), cosine, sine, *mask


def _keep_inputs(*args: Any, **kwargs: Any) -> Any:
    """Divide a layer into forward and backward such that only its inputs are kept between them."""
    with functorch_config.patch(activation_memory_budget=0.0):
        return min_cut_rematerialization_partition(*args, **kwargs)
