"""Cross-entropy of a linear head that never holds more than a chunk of logits, forward or backward.

The gradient of a weighted sum of cross-entropies with respect to the logits is known as soon as the logits are, so each
chunk of rows is turned into its share of the gradients during the forward pass and forgotten. Against
``torch.nn.functional.linear_cross_entropy`` (torch 2.13) this has per-token weights, returns each token's loss, runs on
torch 2.9 as well, and needs a fifth less memory and no more time (``benchmarks/RESULTS.md``).
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows of logits held at once: on a CPU a chunk should stay near the caches, on an accelerator it must fill the device.
CPU_CHUNK_SIZE = 256
ACCELERATOR_CHUNK_SIZE = 2048
CPU_COLUMNS = 2048  # of the head in one matrix product there: a sixth less time than for all of its columns at once


def masked_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    token_weight: Tensor,
    chunk_size: int | None = None,
    capacity: int | None = None,
    needed: Tensor | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of the cross-entropies of N targets under the logits ``hidden @ weight.T``.

    Matrix products run in autocast's dtype where autocast is on, else in the dtype of ``hidden`` (float16: in float32);
    the softmax and the accumulated gradient of ``weight`` are float32 at least.

    Args:
        hidden: [N, H], final hidden states at the positions that predict the targets, or [G, N, H]: N for each of G
            groups, whose chunks are computed side by side.
        weight: [V, H], the output embedding.
        target: int64 [N] or [G, N].
        token_weight: As ``target``; no gradient flows to it.
        chunk_size: Rows of logits held at once, of each group; None chooses by device.
        capacity: The targets behind this many are computed in further windows of as many, and only if ``needed``.
        needed: Integer scalar: how many targets, of the N, count. Those of a window that begins behind them have loss 0.
        compiled: Fuse what happens between the matrix products with torch.compile.

    Returns:
        The weighted sum (a differentiable scalar), and for monitoring each token's loss in nats and a bool, whether no
        other token was more probable than the target; both shaped like ``target``.

    Raises:
        ValueError: If ``chunk_size`` is below 1.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; hold at least 1 row of logits, or None to choose by device")
    device_type = hidden.device.type
    if chunk_size is None:
        chunk_size = CPU_CHUNK_SIZE if device_type == "cpu" else ACCELERATOR_CHUNK_SIZE
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else hidden.dtype
    if dtype == torch.float16:
        # The gradients are made before a loss scale reaches them, and float16 has not the range for them unscaled.
        dtype = torch.float32
    windows = _windows(target.shape[-1], capacity, needed)
    with torch.autocast(device_type, enabled=False):
        # `grad_enabled` must be read here: inside an autograd function it is always off.
        args = (hidden, weight, target, token_weight, chunk_size, windows, dtype, compiled, torch.is_grad_enabled())
        return _ChunkedLinearCrossEntropy.apply(*args)


Differentiate = Callable[[Tensor, Tensor, torch.dtype, bool], tuple[Tensor, Tensor, Tensor]]
Window = tuple[slice, Tensor | None]  # and the condition under which it is computed


def _windows(length: int, capacity: int | None, needed: Tensor | None) -> list[Window]:
    if capacity is None or needed is None:
        return [(slice(0, length), None)]
    starts = range(0, length, capacity)
    return [(slice(start, start + capacity), None if start == 0 else needed > start) for start in starts]


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        token_weight: Tensor,
        chunk_size: int,
        windows: list[Window],
        dtype: torch.dtype,
        compiled: bool,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        precise = torch.promote_types(torch.float32, dtype)
        rows, head = hidden.to(dtype), weight.to(dtype)
        token_weight = token_weight.to(precise)
        nll = torch.zeros_like(token_weight)
        correct = torch.zeros_like(target, dtype=torch.bool)
        grad_hidden = torch.zeros_like(hidden) if grad_enabled and ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=precise) if grad_enabled and ctx.needs_input_grad[1] else None

        score = partial(_score, chunk_size=chunk_size, differentiate=_compiled() if compiled else _differentiate)
        for window, condition in windows:
            gradients = [None if grad_hidden is None else grad_hidden[..., window, :], grad_weight]
            outputs = [nll[..., window], correct[..., window], *(x for x in gradients if x is not None)]
            inputs = [rows[..., window, :], head, target[..., window], token_weight[..., window]]
            wanted = [x is not None for x in gradients]
            _run_if(condition, partial(score, wanted=wanted), outputs, inputs)

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
        return grad_hidden, grad_weight, None, None, None, None, None, None, None


def _run_if(
    condition: Tensor | None, function: Callable[..., None], outputs: Sequence[Tensor], inputs: Sequence[Tensor]
) -> None:
    """``function(*outputs, *inputs)``, which writes into ``outputs``, if the condition holds; None always does."""
    if condition is not None and condition.device.type == "xla":
        from coda.xla.control import when  # torch_xla is there only on machines with such devices

        when(condition, function, outputs, inputs)
    elif condition is None or bool(condition):
        function(*outputs, *inputs)


def _score(*tensors: Tensor, chunk_size: int, wanted: Sequence[bool], differentiate: Differentiate) -> None:
    """Fill in ``nll`` and ``correct``, and of the gradients of ``hidden`` and of ``head`` (added to) those ``wanted``."""
    nll, correct, *gradients, rows, head, target, token_weight = tensors
    grad_hidden = gradients[0] if wanted[0] else None
    grad_weight = gradients[-1] if wanted[1] else None
    buffer = None
    if rows.device.type == "cpu" and rows.ndim == 2:  # there fresh memory for a chunk takes as long as a pass over it
        buffer = rows.new_empty(min(chunk_size, len(rows)), len(head))
    for start in range(0, target.shape[-1], chunk_size):
        chunk = slice(start, start + chunk_size)
        states, scale = rows[..., chunk, :], token_weight[..., chunk, None]
        logits = states @ head.T if buffer is None else _product(states, head, buffer[: len(states)])
        arguments = (target[..., chunk, None], token_weight.dtype, bool(gradients))
        nll[..., chunk, None], correct[..., chunk, None], grad_logits = differentiate(logits, *arguments)
        # The weights of the tokens go to what is small, not to the logits.
        if grad_hidden is not None:
            grad_hidden[..., chunk, :] = (grad_logits @ head) * scale
        if grad_weight is not None:
            scaled = (states * scale).to(states.dtype)
            _add_product(grad_weight, grad_logits.flatten(0, -2).T, scaled.flatten(0, -2))
        del logits, grad_logits  # before the next chunk is made


def _product(rows: Tensor, head: Tensor, out: Tensor) -> Tensor:
    """``rows @ head.T``, into ``out``."""
    for start in range(0, len(head), CPU_COLUMNS):
        columns = slice(start, start + CPU_COLUMNS)
        torch.matmul(rows, head[columns].T, out=out[:, columns])
    return out


def _differentiate(logits: Tensor, target: Tensor, precise: torch.dtype, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [..., 1], whether the target came first, and the gradient of the losses, of ``logits`` [..., V].

    Overwrites the logits, and computes in ``precise``; what comes last means nothing unless ``wanted``.
    """
    at, dtype = _OneHot(target, logits.shape[-1]), logits.dtype
    logits = logits.to(precise)
    largest = logits.amax(dim=-1, keepdim=True)
    score = at.pick(logits) - largest
    probabilities, log_total = _softmax(logits, largest)
    if wanted:
        probabilities = at.subtract_one(probabilities).to(dtype)
    return log_total - score, score == 0, probabilities


def _softmax(logits: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Turn ``logits`` into probabilities, in place, and give the log of what they were divided by: sum exp(l - largest)."""
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        # Takes all its passes over a row while that is in the cache. The largest probability is 1 over the sum.
        torch.softmax(logits, dim=-1, out=logits)
        return logits, -logits.amax(dim=-1, keepdim=True).log()
    logits -= largest
    total = logits.exp_().sum(dim=-1, keepdim=True)
    logits /= total
    return logits, total.log()


@cache
def _compiled() -> Differentiate:
    """One kernel in place of a dozen passes over the logits."""
    return torch.compile(_differentiate)


class _OneHot:
    """One column per row of logits [..., V]: ``index`` int64 [..., 1].

    Comparisons where a compiler fuses them into their neighbours (on XLA they work on a vocabulary that is sharded);
    elsewhere indexing.
    """

    def __init__(self, index: Tensor, columns: int) -> None:
        self.index = index
        fused = index.device.type == "xla" or torch.compiler.is_compiling()
        self.hot = torch.arange(columns, device=index.device) == index if fused else None

    def pick(self, logits: Tensor) -> Tensor:
        """The values there, [..., 1]."""
        if self.hot is None:
            return logits.gather(-1, self.index)
        return torch.where(self.hot, logits, 0).sum(dim=-1, keepdim=True)

    def subtract_one(self, values: Tensor) -> Tensor:
        """Take 1 from the values there, perhaps in place."""
        if self.hot is None:
            return values.scatter_add_(-1, self.index, values.new_full(self.index.shape, -1.0))
        return values - self.hot.to(values.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` with ``total`` in float32 or better."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
