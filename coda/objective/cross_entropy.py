"""Cross-entropy of a linear head that never holds more than a chunk of logits, forward or backward.

The gradient of a weighted sum of cross-entropies with respect to the logits is known as soon as the logits are, so each
chunk of rows is turned into its share of the gradients during the forward pass and forgotten. Against
``torch.nn.functional.linear_cross_entropy`` (torch 2.13) this has per-token weights, returns each token's loss, runs on
torch 2.9 as well, and needs a fifth less memory at the same speed (``benchmarks/RESULTS.md``).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows of logits held at once: on a CPU a chunk should stay near the caches, on an accelerator it must fill the device.
CPU_CHUNK_SIZE = 128
ACCELERATOR_CHUNK_SIZE = 2048


def masked_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    token_weight: Tensor,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of the cross-entropies of N targets under the logits ``hidden @ weight.T``.

    Matrix products run in autocast's dtype where autocast is on, else in the dtype of ``hidden`` (float16: in float32);
    the softmax and the accumulated gradient of ``weight`` are float32 at least.

    Args:
        hidden: [N, H], final hidden states at the positions that predict the targets, and no others.
        weight: [V, H], the output embedding.
        target: int64 [N].
        token_weight: [N], no gradient flows to it.
        chunk_size: Rows of logits held at once; None chooses by device.

    Returns:
        The weighted sum (a differentiable scalar), and for monitoring each token's loss in nats [N] and a bool [N],
        whether no other token was more probable than the target.

    Raises:
        ValueError: If ``chunk_size`` is below 1.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; hold at least 1 row of logits, or None to choose by device")
    if chunk_size is None:
        chunk_size = CPU_CHUNK_SIZE if hidden.device.type == "cpu" else ACCELERATOR_CHUNK_SIZE
    device_type = hidden.device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else hidden.dtype
    if dtype == torch.float16:
        # The gradients are made before a loss scale reaches them, and float16 has not the range for them unscaled.
        dtype = torch.float32
    with torch.autocast(device_type, enabled=False):
        # `grad_enabled` must be read here: inside an autograd function it is always off.
        args = (hidden, weight, target, token_weight, chunk_size, dtype, torch.is_grad_enabled())
        return _ChunkedLinearCrossEntropy.apply(*args)


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        token_weight: Tensor,
        chunk_size: int,
        dtype: torch.dtype,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        precise = torch.promote_types(torch.float32, dtype)
        rows, head = hidden.to(dtype), weight.to(dtype)
        token_weight = token_weight.to(precise)
        nll = torch.empty(len(rows), dtype=precise, device=hidden.device)
        correct = torch.empty(len(rows), dtype=torch.bool, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if grad_enabled and ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=precise) if grad_enabled and ctx.needs_input_grad[1] else None

        for start in range(0, len(rows), chunk_size):
            chunk = slice(start, start + chunk_size)
            logits = (rows[chunk] @ head.T).to(precise)
            # From here the one buffer turns from logits into probabilities into their gradient, in place.
            logits -= logits.amax(dim=-1, keepdim=True)
            score = logits.gather(1, target[chunk, None])
            correct[chunk] = (score == 0).squeeze(1)
            total = logits.exp_().sum(dim=-1, keepdim=True)
            nll[chunk] = (total.log() - score).squeeze(1)
            if grad_hidden is None and grad_weight is None:
                continue
            scale = token_weight[chunk, None]
            logits *= scale / total
            logits.scatter_add_(1, target[chunk, None], -scale)
            grad_logits = logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = grad_logits @ head
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits.T, rows[chunk])

        ctx.gradients = (grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(nll, correct)
        return (nll * token_weight).sum(), nll, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "masked_linear_cross_entropy gives its gradients once; call it again for a second backward"
            )
        (grad_hidden, grad_weight), ctx.gradients = ctx.gradients, None
        scale = grad_outputs[0]
        if grad_hidden is not None:
            grad_hidden *= scale
        if grad_weight is not None:
            grad_weight *= scale
            grad_weight = grad_weight.to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` with ``total`` in float32 or better."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
