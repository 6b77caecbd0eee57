"""What the benchmark of a GPU compares: ways to compute a training step, of which each switches something on."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Adafactor

from benchmarks import losses, peers
from benchmarks.losses import Loss, masked_by_us
from coda.model import CoDAConfig, CoDALanguageModel
from coda.model.performance import checkpoint_layers, compile_layers

DOCUMENT = 1024  # tokens, where documents are kept apart
EVERYWHERE = ("full_logits", *(peer.__name__ for peer in peers.PEERS.values()))  # losses that compute all logits


@dataclass(frozen=True)
class Variant:
    """What is switched on.

    Attributes:
        loss: A name of :mod:`benchmarks.losses`, or of a peer.
        attention: What transformers calls the implementation.
        backend: The one kernel that sdpa may choose; None leaves the choice to torch.
        mode: Of torch.compile, for the layers; None leaves them eager.
        checkpointing: As the backbone's ``gradient_checkpointing``.
        optimizer: A name of :data:`OPTIMIZERS`.
        chunk: Rows of logits held at once.
        document: Tokens per document; attention stays inside.
        compile_loss: As the objective's.
        needs: A package that must be there.
    """

    loss: str = "ours"
    attention: str = "sdpa"
    backend: SDPBackend | None = None
    mode: str | None = None
    checkpointing: bool | Literal["selective"] = False
    optimizer: str = "fused AdamW"
    chunk: int | None = None
    document: int | None = None
    compile_loss: bool = False
    needs: str | None = None

    @property
    def predicted(self) -> float:
        """Share of the tokens whose logits are computed."""
        return 1.0 if self.loss in EVERYWHERE else 0.5

    def lacks(self) -> str | None:
        """What keeps it from being measured here, or None."""
        if self.loss not in peers.available() and self.loss in EVERYWHERE[1:]:
            return "no checkout is named"
        if self.needs is not None and find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        if self.loss == "torch_linear_cross_entropy" and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
            return "needs torch 2.13"
        return None

    def kernels(self) -> AbstractContextManager[Any]:
        """Where forward and backward passes run."""
        return nullcontext() if self.backend is None else sdpa_kernel(self.backend)


FAST = Variant(mode="default")
VARIANTS = {
    "plain transformers: full logits, eager": Variant("full_logits"),
    "plain transformers: full logits, compiled": replace(FAST, loss="full_logits"),
    "dllm": Variant("dllm"),
    "dllm, compiled": replace(FAST, loss="dllm"),
    "released": Variant("released"),
    "ours, eager": Variant(),
    "ours, eager, AdamW not fused": Variant(optimizer="AdamW"),
    "ours, compiled": FAST,
    "ours, compiled, Adafactor": replace(FAST, optimizer="Adafactor"),
    "ours, compiled, compiled loss": replace(FAST, compile_loss=True),
    "ours, compiled, chunks of 1,024": replace(FAST, chunk=1024),
    "ours, compiled, chunks of 4,096": replace(FAST, chunk=4096),
    "torch's linear cross-entropy, compiled": replace(FAST, loss="torch_linear_cross_entropy"),
    "Liger's linear cross-entropy, compiled": replace(FAST, loss="liger", needs="liger_kernel"),
    "ours, compiled, sdpa's FlashAttention": replace(FAST, backend=SDPBackend.FLASH_ATTENTION),
    "ours, compiled, sdpa's cuDNN": replace(FAST, backend=SDPBackend.CUDNN_ATTENTION),
    "ours, compiled, FlashAttention 3": replace(FAST, attention="flash_attention_3", needs="flash_attn_interface"),
    "ours, compiled, autotuned": replace(FAST, mode="max-autotune-no-cudagraphs"),
    "ours, compiled, CUDA graphs": replace(FAST, mode="reduce-overhead"),
    "ours, compiled, selective recomputation": replace(FAST, checkpointing="selective"),
    "ours, compiled, full recomputation": replace(FAST, checkpointing=True),
    "ours, compiled, documents, sdpa": replace(FAST, document=DOCUMENT),
    "ours, compiled, documents, flex": replace(FAST, document=DOCUMENT, attention="flex_attention"),
    "ours, compiled, compiled loss, cuDNN": replace(FAST, compile_loss=True, backend=SDPBackend.CUDNN_ATTENTION),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-5),
    "fused AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-5, fused=True),
    "Adafactor": lambda weights: Adafactor(weights, lr=1e-5, relative_step=False, scale_parameter=False),
}


def build(variant: Variant, config: CoDAConfig, device: torch.device) -> tuple[nn.Module, Loss]:
    """The model and its loss."""
    config._attn_implementation = variant.attention
    if variant.loss in peers.available():
        model, loss = peers.available()[variant.loss](config, device)
    else:
        ours = losses.ours(variant.chunk, variant.document, variant.compile_loss)
        score = ours if variant.loss == "ours" else getattr(losses, variant.loss)
        model, loss = masked_by_us(score)(config, device)
    if variant.checkpointing or variant.mode is not None:
        assert isinstance(model, CoDALanguageModel)
        if variant.checkpointing:
            checkpoint_layers(model, selective=variant.checkpointing == "selective")
        if variant.mode is not None:
            compile_layers(model, variant.mode)
    return model, loss
