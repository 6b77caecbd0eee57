"""What the objective must never compute: logits of tokens that are no targets, or more than a chunk of them at once."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coda.objective import DiffusionObjective, masked_linear_cross_entropy

BATCH, LENGTH, HIDDEN, VOCAB = 4, 16, 3, 97
PRODUCTS = {f"aten::{name}" for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "mv", "matmul", "linear")}


class Recorder(TorchDispatchMode):
    """Records the largest tensor that any operation returns, and the shape of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.products: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.largest = max([self.largest, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        if func._schema.name in PRODUCTS:
            self.products.append(out.shape)
        return out

    def logit_rows(self) -> int:
        """Rows of all products that have the vocabulary as columns."""
        return sum(shape[:-1].numel() for shape in self.products if shape[-1] == VOCAB)


def case(share: float = 0.5) -> dict[str, Tensor]:
    """A batch of the objective with about ``share`` of its tokens masked."""
    generator = torch.Generator().manual_seed(0)
    masked = torch.rand(BATCH, LENGTH, generator=generator) < share
    masked[:, 0] = False
    return {
        "hidden": torch.randn(BATCH, LENGTH, HIDDEN, generator=generator).requires_grad_(),
        "head": torch.randn(VOCAB, HIDDEN, generator=generator).requires_grad_(),
        "target_ids": torch.randint(VOCAB, (BATCH, LENGTH), generator=generator),
        "masked": masked,
        "maskable": torch.ones_like(masked),
        "t": torch.full((BATCH,), 0.5),
    }


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("chunk_size", [4, 9])
def test_no_tensor_is_larger_than_a_chunk_of_logits(chunk_size: int, autocast: bool) -> None:
    """Forward and backward; the head and its gradient, V x H, are smaller than a chunk here."""
    batch = case()
    assert VOCAB * HIDDEN < chunk_size * VOCAB < int(batch["masked"].sum()) * VOCAB
    with Recorder() as recorder, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        DiffusionObjective(chunk_size=chunk_size)(**batch).loss_sum.backward()
    assert recorder.largest == chunk_size * VOCAB


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_logits_are_computed_for_the_masked_tokens_only_and_once(share: float, shift: bool) -> None:
    batch = case(share)
    with Recorder() as recorder:
        DiffusionObjective(shift=shift, chunk_size=8)(**batch).loss_sum.backward()
    assert recorder.logit_rows() == int(batch["masked"].sum())


def test_training_takes_three_products_per_chunk() -> None:
    """Logits and two gradients: nothing is recomputed in the backward pass."""
    batch = case()
    chunks = -(-int(batch["masked"].sum()) // 8)
    with Recorder() as recorder:
        DiffusionObjective(chunk_size=8)(**batch).loss_sum.backward()
    assert len(recorder.products) == 3 * chunks


@pytest.mark.parametrize("no_grad", [torch.no_grad, torch.inference_mode])
def test_without_gradients_only_the_logits_are_computed(no_grad: Any) -> None:
    batch = case()
    chunks = -(-int(batch["masked"].sum()) // 8)
    with Recorder() as recorder, no_grad():
        DiffusionObjective(chunk_size=8)(**batch)
    assert len(recorder.products) == chunks


def test_without_gradients_none_is_computed_for_inputs_that_want_them() -> None:
    hidden, head = torch.randn(8, HIDDEN, requires_grad=True), torch.randn(VOCAB, HIDDEN, requires_grad=True)
    with Recorder() as recorder, torch.no_grad():
        masked_linear_cross_entropy(hidden, head, torch.zeros(8, dtype=torch.long), torch.ones(8), chunk_size=8)
    assert recorder.products == [(8, VOCAB)]


@pytest.mark.parametrize(("learned", "products"), [((), 1), ((0,), 2), ((1,), 2), ((0, 1), 3)])
def test_no_gradient_is_computed_for_frozen_inputs(learned: tuple[int, ...], products: int) -> None:
    inputs = [torch.randn(8, HIDDEN), torch.randn(VOCAB, HIDDEN)]
    for i in learned:
        inputs[i].requires_grad_()
    with Recorder() as recorder:
        masked_linear_cross_entropy(*inputs, torch.zeros(8, dtype=torch.long), torch.ones(8), chunk_size=8)
    assert len(recorder.products) == products


def test_the_recorder_sees_full_logits() -> None:
    """The plain way fails both claims above, forward and backward."""
    batch = case()
    with Recorder() as recorder:
        logits = batch["hidden"] @ batch["head"].T
        logits[batch["masked"]].logsumexp(dim=-1).sum().backward()
    assert recorder.largest == BATCH * LENGTH * VOCAB
    assert recorder.logit_rows() == BATCH * LENGTH
