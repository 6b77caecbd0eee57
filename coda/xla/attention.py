"""Pallas flash attention for TPUs: both directions, document segments and padding, and no L x L mask anywhere."""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from coda.xla.mesh import BATCH, size

# What models name in `attn_implementation`. Not "flash": transformers would look for such a name on the hub.
PALLAS = "xla_pallas"
ROWS_AND_HEADS = (BATCH, "tensor", None, None)
LANES = 128
BLOCKS = (1024, 512, 256)  # of the kernels, forward and backward: rows are whole blocks, or one smaller block
INSTALL = "pip install 'torch_xla[pallas]==2.9.0'"


def register() -> None:
    """Make ``attn_implementation: xla_pallas`` known to transformers."""
    AttentionInterface.register(PALLAS, pallas_attention)
    AttentionMaskInterface.register(PALLAS, sdpa_mask)


def pallas_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Rows that do not fill the kernel's blocks, batches that the mesh does not divide and masks that are no segments, all
    of which sampling has, take torch's own attention.

    Args:
        module: The attention layer.
        query: [B, heads, L, D].
        key: [B, key heads, L, D].
        value: As ``key``; its dtype is that of the computation (norms return float32 under autocast).
        attention_mask: Integer [B, L], a token looks at those of its own number; or bool [B, 1, L, keys]; or None.
        scaling: Of the scores; None is 1 / sqrt(D).
        **kwargs: For torch's own.

    Returns:
        [B, L, heads, D], and None in place of the weights.

    Raises:
        ValueError: If training rows do not fill the kernel's blocks, or there is no TPU or no jax to run it.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    segments = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
    by_segment = attention_mask is None or segments is not None
    length = query.shape[2]
    filled = length == key.shape[2] and fills_blocks(length)
    if module.training and by_segment and not filled:
        raise ValueError(
            f"attn_implementation is {PALLAS}, whose blocks rows of {length} tokens do not fill; set "
            "data.sequence_length (and data.init_args.canvas_multiple) to 128, 256, 512 or a multiple of 1024, or "
            "attn_implementation to sdpa"
        )
    if by_segment and filled:
        check_kernel()
        if is_divided(len(query)):
            groups = query.shape[1] // key.shape[1]
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            attended = flash_attention(query, repeat_kv(key, groups), repeat_kv(value, groups), segments, scale)
            return attended.transpose(1, 2), None
    mask = attention_mask if segments is None else segments[:, None, :, None] == segments[:, None, None, :]
    return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)


def fills_blocks(length: int) -> bool:
    """Whether rows of ``length`` tokens are whole blocks of every kernel."""
    return length % LANES == 0 and all(length % min(block, length) == 0 for block in BLOCKS)


def is_divided(rows: int) -> bool:
    """Whether the mesh of the strategy divides a batch of so many rows."""
    from torch_xla.distributed.spmd import get_global_mesh

    mesh = get_global_mesh()
    return mesh is None or rows % size(mesh, *BATCH) == 0


def flash_attention(query: Tensor, key: Tensor, value: Tensor, segments: Tensor | None, scale: float) -> Tensor:
    """The kernel on [B, heads, L, D], divided over the mesh of the strategy by rows and by heads."""
    from torch_xla.distributed.spmd import get_global_mesh
    from torch_xla.experimental import custom_kernel

    mesh = get_global_mesh()
    numbers = None if segments is None else segments.to(torch.int32)
    divided = {} if mesh is None else {"partition_spec": ROWS_AND_HEADS, "mesh": mesh}
    return custom_kernel.flash_attention(query, key, value, False, numbers, numbers, scale, **divided)


def check_kernel() -> None:
    """Raise ValueError where the kernel cannot run: on a CPU it would end the process without a word."""
    import torch_xla.runtime as xr

    if xr.device_type() != "TPU":
        raise ValueError(
            f"attn_implementation {PALLAS} is a TPU kernel, but PJRT_DEVICE is {xr.device_type()}; set "
            "model.backbone.init_args.attn_implementation to sdpa"
        )
    if importlib.util.find_spec("jax") is None:
        raise ValueError(f"attn_implementation {PALLAS} needs jax, which is not installed: {INSTALL}")
