"""Number formats: float32, float32 master weights with bfloat16 compute, or bfloat16 throughout."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from lightning import LightningModule
from lightning.pytorch.plugins import XLAPrecision
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

Format = Literal["32-true", "bf16-mixed", "bf16-true"]


# Not "flash": transformers would look for such a name on the hub.
UNIFORM = "sdpa_uniform"


class SPMDPrecision(XLAPrecision):
    """Casts what is meant to be cast, and nothing else.

    Lightning's own sets XLA_USE_BF16, which makes every float32 of the program a bfloat16, also those that are there to
    be precise; and it averages gradients over devices, which the compiler does under SPMD.

    Args:
        precision: ``32-true``; ``bf16-mixed``, float32 weights and bfloat16 matrix products; ``bf16-true``, bfloat16
            weights, while statistics and rotary frequencies stay float32.
    """

    def __init__(self, precision: Format) -> None:
        if precision not in get_args(Format):
            raise ValueError(
                f"trainer.strategy.init_args.precision is {precision}; choose one of {', '.join(get_args(Format))}"
            )
        super().__init__("32-true")
        self.precision = precision  # type: ignore[assignment]

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Cast the weights under ``bf16-true``, and what attention is given under ``bf16-mixed``, in place."""
        if str(self.precision) == "bf16-true":
            for parameter in module.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        if str(self.precision) == "bf16-mixed":
            for part in module.children():
                if isinstance(part, PreTrainedModel) and part.config._attn_implementation == "sdpa":
                    part.set_attn_implementation(_register_uniform())
        return module

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast under ``bf16-mixed``."""
        if str(self.precision) == "bf16-mixed":
            return torch.autocast("xla", dtype=torch.bfloat16)
        return nullcontext()

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """Trace forward, backward and update; the strategy runs them."""
        return super(XLAPrecision, self).optimizer_step(optimizer, model=model, closure=closure, **kwargs)

    def teardown(self) -> None:
        """Nothing was set that would have to be taken back."""


def _register_uniform() -> str:
    AttentionInterface.register(UNIFORM, _attend)
    AttentionMaskInterface.register(UNIFORM, sdpa_mask)
    return UNIFORM


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Attention in the format of ``value``: norms return float32 under autocast, which casts for this on GPUs alone."""
    return sdpa_attention_forward(module, query.to(value.dtype), key.to(value.dtype), value, *args, **kwargs)
