"""One compiled layer for all layers: what the compiler has to optimise no longer grows with their number."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.partitioners import default_partition
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from coda.xla.offload import INPUT, SETTING, keep_named, mark, name_results

INSTALL = "pip install 'torch_xla[pallas]==2.9.0' torchax==0.0.7"


def scan_layers(model: PreTrainedModel, recompute: bool = False, offload: Sequence[str] = ()) -> list[RemovableHandle]:
    """Have ``model.model.layers`` run as one loop of the device, in place; names of parameters stay as they are.

    Values and gradients are those of the layers one after the other. With a cache, and on other devices, they still run so.

    Args:
        model: A Qwen3 of transformers, all of whose layers are alike.
        recompute: Keep only what enters each layer for the backward pass, and compute the rest again. This replaces
            transformers' gradient checkpointing, which is switched off.
        offload: Results that are kept on the host instead: ``input``, what enters each layer, or what parts of it
            return, by their names in the layer. See :mod:`coda.xla.offload`.

    Returns:
        Hooks that name those results.

    Raises:
        ValueError: If jax or torchax, on which the loop's backward pass relies, are missing; or if ``offload`` names what
            a layer does not have, or nothing is computed again, so that all the rest would stay on the device.
    """
    missing = [name for name in ("jax", "torchax") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"scan_layers needs {' and '.join(missing)}, not installed here: {INSTALL}")
    if any(getattr(layer, "gradient_checkpointing", False) for layer in model.model.layers):
        model.gradient_checkpointing_disable()
        recompute = True
    if offload and not recompute:
        raise ValueError(f"{SETTING} needs gradient_checkpointing: without it, all else stays on the device as well")
    from torch_xla.experimental import scan_layers as experimental

    experimental._ONE_LAYER_CACHE.clear()  # its keys are addresses, which new layers may have again
    hooks = name_results(model.model.layers[0], offload)  # the loop is a copy of the first layer
    model.model.layers = ScannedLayers(model.model.layers, recompute, INPUT in offload)
    return hooks


class ScannedLayers(nn.ModuleList):
    """The layers of a model, which the model's own loop sees as a single one.

    Args:
        layers: All alike.
        recompute: See :func:`scan_layers`.
        offload: Whether what enters each layer is kept on the host.
    """

    def __init__(self, layers: nn.ModuleList, recompute: bool, offload: bool) -> None:
        super().__init__(layers)  # keeps their names
        self.partition = keep_named if recompute else default_partition
        self.offload = offload
        # By the mask's dtype, since the loop is a copy of the first layer, once made. In tuples, for parameters already
        # have their names.
        self.steps: dict[torch.dtype | None, tuple[_Step, ...]] = {}

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
        dtype = None if attention_mask is None else attention_mask.dtype
        if dtype not in self.steps:
            self.steps[dtype] = tuple(_Step(layer, dtype, self.offload) for layer in self)
        carried = (hidden_states, *position_embeddings, *mask)
        options = {"partition_fn": self.partition, "is_layer_pure": True}
        return experimental.scan_layers(self.steps[dtype], carried, **options)[0]


class _Step(nn.Module):
    """A layer as a function from what the loop carries to what it carries on."""

    def __init__(self, layer: nn.Module, mask_dtype: torch.dtype | None, offload: bool) -> None:
        super().__init__()
        self.layer = layer
        self.mask_dtype = mask_dtype
        self.offload = offload

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor, *mask: Tensor) -> tuple[Tensor, ...]:
        read = mask[0].to(self.mask_dtype) if mask else None
        hidden = mark(hidden, INPUT) if self.offload else hidden
        return self.layer(hidden, attention_mask=read, position_embeddings=(cosine, sine)), cosine, sine, *mask
