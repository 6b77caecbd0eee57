"""What the interface promises for every strategy: outputs that agree, untouched inputs, seeds, no host sync, memory."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from coda.masking import (
    BlockMasking,
    Linear,
    MaskedBatch,
    MaskingStrategy,
    PerEpoch,
    ProgressiveMasking,
    RandomMasking,
    TruncatedSuffix,
    UnmaskablePrefix,
)

MASK, PAD = 101, 0
STRATEGIES: dict[str, MaskingStrategy] = {
    "random": RandomMasking(),
    "S1": UnmaskablePrefix(0.5),
    "S2": TruncatedSuffix(0.5),
    "S2 hidden": TruncatedSuffix(Linear(0.5, 0.6), hide_padding=True),
    "S3": BlockMasking([2, 4, 8], PerEpoch([0.3, 0.5, 0.7])),
    "progressive": ProgressiveMasking(PerEpoch([0.3, 0.5]), Linear(0.2, 0.4), 0.5, [2, 4, 8], hide_padding=True),
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())


def clean_batch(rows: int = 64, length: int = 33) -> dict[str, Any]:
    """A batch with clean ids 1..100, a fifth of the tokens unmaskable, and the noise levels of its rows."""
    generator = torch.Generator().manual_seed(7)
    return {
        "input_ids": torch.randint(1, 101, (rows, length), generator=generator),
        "maskable": torch.rand(rows, length, generator=generator) > 0.2,
        "t": 0.05 + 0.95 * torch.rand(rows, generator=generator),
        "progress": 0.6,
    }


def apply(strategy: MaskingStrategy, batch: dict[str, Any], seed: int | None = 0) -> MaskedBatch:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return strategy(**batch, mask_token_id=MASK, pad_token_id=PAD, generator=generator)


def tensors(batch: MaskedBatch) -> list[Tensor]:
    return [leaf for leaf in tree_leaves([getattr(batch, f.name) for f in fields(batch)]) if leaf is not None]


def same(a: MaskedBatch, b: MaskedBatch) -> bool:
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    return a.applied.keys() == b.applied.keys() and all(torch.equal(x, y) for x, y in pairs)


@every_strategy
def test_noisy_ids_are_the_mask_where_masked_and_the_targets_elsewhere(strategy: MaskingStrategy) -> None:
    out = apply(strategy, clean_batch())
    assert out.masked.any()
    assert (out.noisy_input_ids[out.masked] == MASK).all()
    assert torch.equal(out.noisy_input_ids[~out.masked], out.target_ids[~out.masked])


@every_strategy
def test_unmaskable_tokens_are_never_masked_and_never_become_maskable(strategy: MaskingStrategy) -> None:
    batch = clean_batch()
    batch["t"] = torch.ones_like(batch["t"])
    out = apply(strategy, batch)
    assert not (out.masked & ~out.maskable).any()
    assert not (out.maskable & ~batch["maskable"]).any()


@every_strategy
def test_the_mask_is_what_was_drawn_even_if_the_clean_text_holds_mask_tokens(strategy: MaskingStrategy) -> None:
    batch = clean_batch()
    expected = apply(strategy, batch).masked
    batch["input_ids"] = torch.full_like(batch["input_ids"], MASK)
    assert torch.equal(apply(strategy, batch).masked, expected)


@every_strategy
def test_inputs_are_not_modified(strategy: MaskingStrategy) -> None:
    batch = clean_batch() | {"progress": torch.tensor([0.6])}
    before = {name: value.clone() for name, value in batch.items()}
    apply(strategy, batch)
    assert all(torch.equal(batch[name], before[name]) for name in batch)


@every_strategy
def test_shapes_and_types(strategy: MaskingStrategy) -> None:
    batch = clean_batch()
    out = apply(strategy, batch)
    shape = batch["input_ids"].shape
    expected = {"noisy_input_ids": torch.long, "target_ids": torch.long, "masked": torch.bool, "maskable": torch.bool}
    for name, dtype in expected.items():
        value = getattr(out, name)
        assert (value.shape, value.dtype) == (shape, dtype), name
    assert all((rows.shape, rows.dtype) == (shape[:1], torch.bool) for rows in out.applied.values())
    assert out.applied.keys() == strategy.schedules().keys()


@every_strategy
def test_same_seed_gives_the_same_batch_and_another_seed_another(strategy: MaskingStrategy) -> None:
    batch = clean_batch()
    assert same(apply(strategy, batch, seed=3), apply(strategy, batch, seed=3))
    assert not same(apply(strategy, batch, seed=3), apply(strategy, batch, seed=4))


@every_strategy
def test_a_generator_neither_reads_nor_moves_the_global_random_state(strategy: MaskingStrategy) -> None:
    batch = clean_batch()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = apply(strategy, batch)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(apply(strategy, batch), first)


@every_strategy
def test_without_a_generator_the_global_seed_decides(strategy: MaskingStrategy) -> None:
    batch = clean_batch()
    torch.manual_seed(1)
    first = apply(strategy, batch, seed=None)
    torch.manual_seed(1)
    assert same(apply(strategy, batch, seed=None), first)
    assert not same(apply(strategy, batch, seed=None), first)


@every_strategy
@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
def test_progress_may_be_a_float_or_a_tensor(strategy: MaskingStrategy, progress: float) -> None:
    as_float = apply(strategy, clean_batch() | {"progress": progress})
    as_tensor = apply(strategy, clean_batch() | {"progress": torch.tensor([progress])})
    assert same(as_float, as_tensor)


@every_strategy
@pytest.mark.parametrize("length", [1, 2])
def test_rows_of_one_and_two_tokens(strategy: MaskingStrategy, length: int) -> None:
    out = apply(strategy, clean_batch(rows=200, length=length))
    assert out.noisy_input_ids.shape == (200, length)
    assert not (out.masked & ~out.maskable).any()
    assert torch.equal(out.noisy_input_ids, torch.where(out.masked, MASK, out.target_ids))


class HostSyncError(AssertionError):
    """An operation makes the host wait for the device, or copies data to it."""


class NoHostSync(TorchDispatchMode):
    """Fails on every operation whose result the host must read: ``.item()``, ``nonzero``, masks as indices, ``unique``.

    Building a tensor from Python data (``lift_fresh``) counts too: it is a copy from the host.
    """

    SYNCS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.SYNCS & set(func.tags) or func is torch.ops.aten.lift_fresh.default:
            raise HostSyncError(str(func))
        return func(*args, **(kwargs or {}))


SYNCS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "branch": lambda x: bool((x > 0).any()),
    "nonzero": lambda x: x.nonzero(),
    "boolean index": lambda x: x[x > 0],
    "host data": lambda x: torch.tensor([2, 4, 8]),
}


@pytest.mark.parametrize("bad", SYNCS.values(), ids=SYNCS.keys())
def test_the_sync_detector_detects(bad: Callable[[Tensor], object]) -> None:
    with pytest.raises(HostSyncError), NoHostSync():
        bad(torch.ones(3))


@every_strategy
def test_no_operation_waits_for_the_device(strategy: MaskingStrategy) -> None:
    batch = clean_batch()
    on_device = batch | {"progress": torch.tensor([0.6])}
    with NoHostSync():
        apply(strategy, batch)
        apply(strategy, on_device)


class Recorder(TorchDispatchMode):
    """Records every operation with the shapes and constants it was given, and the largest tensor that came out."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, Any]] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append((str(func), tree_map(lambda a: a.shape if isinstance(a, Tensor) else a, args)))
        out = func(*args, **(kwargs or {}))
        self.largest = max([self.largest, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


@every_strategy
def test_memory_grows_with_the_tokens_only(strategy: MaskingStrategy) -> None:
    """No tensor exceeds 2 B L elements, where L^2, and k L for the largest k = 8, would."""
    batch = clean_batch(rows=3, length=500)
    with Recorder() as recorder:
        apply(strategy, batch)
    assert batch["input_ids"].numel() <= recorder.largest <= 2 * batch["input_ids"].numel()


@every_strategy
def test_operations_are_the_same_at_any_progress_and_seed(strategy: MaskingStrategy) -> None:
    """Else XLA compiles anew: no probability, progress or draw may become a shape or a constant."""
    traces = []
    for progress, seed in ((0.0, 0), (0.4, 1), (1.0, 2)):
        batch = clean_batch() | {"progress": torch.tensor([progress])}
        with Recorder() as recorder:
            apply(strategy, batch, seed)
        traces.append(recorder.operations)
    assert traces[0] == traces[1] == traces[2]


@every_strategy
@pytest.mark.parametrize("tensor_progress", [False, True])
def test_everything_is_made_on_the_device_of_the_batch(strategy: MaskingStrategy, tensor_progress: bool) -> None:
    batch = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in clean_batch().items()}
    if tensor_progress:
        batch["progress"] = torch.full((1,), 0.6, device="meta")
    out = apply(strategy, batch, seed=None)
    assert {x.device.type for x in tensors(out)} == {"meta"}
