"""Instruction masking: which part of the prompt may be masked at which point of training."""

from fractions import Fraction
from math import floor

import pytest
import torch
from torch import Tensor

from coda.masking import InstructionMasking, MaskedBatch
from tests.masking.test_contract import NoHostSync, Recorder

MASK, PAD = 101, 0
LENGTH = 48
RAMPS = [0.0, 0.0625, 0.25, 0.5, 1.0]  # exact in float32, as is progress
PROGRESS = [0.0, 0.015625, 0.03125, 0.0625, 0.078125, 0.125, 0.25, 0.375, 0.484375, 0.5, 0.75, 0.984375, 1.0]
PROMPTS = [0, 1, 2, 3, 10, 17, 33, LENGTH - 1]


def rows(prompts: list[int], length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Clean ids, and what is maskable behind prompts of these lengths."""
    ids = torch.randint(1, 101, (len(prompts), length), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(length) >= torch.tensor(prompts)[:, None]


def apply(
    masking: InstructionMasking, maskable: Tensor, progress: float | Tensor, t: float = 0.5, seed: int = 0
) -> MaskedBatch:
    ids = torch.randint(1, 101, maskable.shape, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    levels = torch.full((len(maskable),), t)
    return masking(ids, maskable, levels, progress, mask_token_id=MASK, pad_token_id=PAD, generator=generator)


def protected(ramp: float, progress: float, prompt: int) -> int:
    """floor(r * n) in exact arithmetic, and at least the first token."""
    share = Fraction(1) if not ramp else min(Fraction(str(progress)) / Fraction(str(ramp)), Fraction(1))
    return min(max(floor(share * prompt), 1), prompt)


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("progress", PROGRESS)
def test_the_protected_share_of_the_prompt_grows_to_all_of_it(ramp: float, progress: float) -> None:
    out = apply(InstructionMasking(ramp), rows(PROMPTS)[1], progress)
    for prompt, maskable in zip(PROMPTS, out.maskable.tolist(), strict=True):
        kept = protected(ramp, progress, prompt)
        assert maskable == [False] * kept + [True] * (LENGTH - kept), prompt


@pytest.mark.parametrize("prompt", [100, 777, 1023])
def test_it_grows_token_by_token_in_long_prompts(prompt: int) -> None:
    """At most one token, one step late: the share is a float32."""
    maskable = rows([prompt], 1024)[1]
    kept = []
    for step in range(0, 130):
        out = apply(InstructionMasking(0.1), maskable, step / 1000)
        kept.append(int(out.maskable[0].long().argmax()))
        assert kept[-1] in {protected(0.1, step / 1000, prompt) - late for late in (0, 1)}
    assert kept == sorted(kept)
    assert kept[0] == 1
    assert kept[100:] == [prompt] * 30


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("progress", [0.0, 0.03, 0.2, 1.0])
@pytest.mark.parametrize("t", [1e-3, 0.3, 1.0])
def test_the_response_is_always_maskable_and_the_first_token_never(ramp: float, progress: float, t: float) -> None:
    _, maskable = rows([max(prompt, 1) for prompt in PROMPTS])
    out = apply(InstructionMasking(ramp), maskable, progress, t)
    assert (out.maskable | ~maskable).all()
    assert not out.maskable[:, 0].any()
    assert not (out.masked & ~out.maskable).any()
    assert torch.equal(out.noisy_input_ids == MASK, out.masked)
    if t == 1.0:
        assert torch.equal(out.masked, out.maskable)


@pytest.mark.parametrize("progress", [0.0, 0.0625, 0.125, 1.0])
@pytest.mark.parametrize("ramp", [0.0, 0.125])
def test_what_fills_up_a_row_stays_unmaskable(ramp: float, progress: float) -> None:
    """A gap behind the first response is no prompt either."""
    maskable = rows([5, 9])[1]
    maskable[0, 30:] = False
    maskable[1, 20:25] = False
    out = apply(InstructionMasking(ramp), maskable, progress)
    assert not out.maskable[0, 30:].any()
    assert not out.maskable[1, 20:25].any()
    assert torch.equal(out.maskable[:, 9:], maskable[:, 9:])
    for row, prompt in enumerate([5, 9]):  # and counts for none
        kept = protected(ramp, progress, prompt)
        assert out.maskable[row, :prompt].tolist() == [False] * kept + [True] * (prompt - kept)


@pytest.mark.parametrize("progress", [0.0, 0.04, 1.0])
def test_a_row_without_a_response_stays_as_it_is(progress: float) -> None:
    maskable = torch.zeros(3, LENGTH, dtype=torch.bool)
    maskable[1, 20:] = True
    out = apply(InstructionMasking(0.1), maskable, progress, t=1.0)
    assert not out.maskable[[0, 2]].any()
    assert not out.masked[[0, 2]].any()
    assert out.masked[1, 20:].all()
    assert out.applied["prompt"].tolist() == [False, progress < 0.1, False]


@pytest.mark.parametrize("ramp", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("progress", [0.0, 0.05, 0.1, 0.6, 1.0])
def test_applied_tells_the_rows_whose_prompt_is_scored(ramp: float, progress: float) -> None:
    _, maskable = rows(PROMPTS)
    out = apply(InstructionMasking(ramp), maskable, progress)
    assert out.applied.keys() == {"prompt"}
    assert torch.equal(out.applied["prompt"], (out.maskable & ~maskable).any(dim=1))
    assert out.applied["prompt"].tolist() == [protected(ramp, progress, prompt) < prompt for prompt in PROMPTS]


@pytest.mark.parametrize("progress", [0.0, 0.031, 0.05, 0.1, 0.9])
def test_it_is_a_pure_function_of_progress(progress: float) -> None:
    """A number or a tensor, in any order, whatever was masked before."""
    masking, maskable = InstructionMasking(0.1), rows(PROMPTS)[1]
    expected = apply(masking, maskable, progress)
    for before in (1.0, 0.0, 0.5):
        apply(masking, maskable, before, seed=7)
        for again in (progress, torch.tensor([progress])):
            out = apply(masking, maskable, again)
            assert torch.equal(out.maskable, expected.maskable)
            assert torch.equal(out.masked, expected.masked)
    fresh = apply(InstructionMasking(0.1), maskable, progress)
    assert torch.equal(fresh.noisy_input_ids, expected.noisy_input_ids)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("progress", [0.0, 0.05, 1.0])
def test_every_maskable_token_is_masked_at_rate_t(t: float, progress: float) -> None:
    """In the prompt's rest and the response alike; within 5 sigma."""
    maskable = rows([20])[1].expand(4000, LENGTH)
    out = apply(InstructionMasking(0.1), maskable, progress, t)
    kept = protected(0.1, progress, 20)
    rate = out.masked.double().mean(dim=0)
    assert (rate[:kept] == 0).all()
    assert ((rate[kept:] - t).abs() < 5 * (t * (1 - t) / 4000) ** 0.5).all()


def test_targets_and_inputs_are_left_alone() -> None:
    ids, maskable = rows(PROMPTS)
    before = ids.clone(), maskable.clone()
    levels = torch.full((len(ids),), 0.5)
    out = InstructionMasking(0.1)(ids, maskable, levels, torch.tensor([0.05]), mask_token_id=MASK)
    assert torch.equal(ids, before[0]) and torch.equal(maskable, before[1])
    assert torch.equal(out.target_ids, ids)
    assert out.attention_mask is None


def test_a_row_is_masked_alike_in_any_batch() -> None:
    ids, maskable = rows(PROMPTS)
    seeds, levels = torch.arange(len(ids)) * 977, torch.linspace(0.1, 1, len(ids))
    masking = InstructionMasking(0.1)
    whole = masking(ids, maskable, levels, 0.03, mask_token_id=MASK, seeds=seeds)
    for i in range(len(ids)):
        part = slice(i, i + 1)
        alone = masking(ids[part], maskable[part], levels[part], 0.03, mask_token_id=MASK, seeds=seeds[part])
        assert torch.equal(alone.masked[0], whole.masked[i])


def test_no_operation_waits_for_the_device() -> None:
    ids, maskable = rows(PROMPTS)
    levels, progress = torch.full((len(ids),), 0.5), torch.tensor([0.05])
    for masking in (InstructionMasking(), InstructionMasking(0.1)):
        with NoHostSync():
            masking(ids, maskable, levels, progress, mask_token_id=MASK)
            masking(ids, maskable, levels, 0.05, mask_token_id=MASK)


def test_operations_are_the_same_at_any_progress() -> None:
    """Else XLA compiles anew."""
    ids, maskable = rows(PROMPTS)
    traces = []
    for progress in (0.0, 0.05, 1.0):
        with Recorder() as recorder:
            InstructionMasking(0.1)(
                ids, maskable, torch.full((len(ids),), 0.5), torch.tensor([progress]), mask_token_id=MASK
            )
        traces.append(recorder.operations)
    assert traces[0] == traces[1] == traces[2]
    assert recorder.largest <= 2 * ids.numel()


@pytest.mark.parametrize("ramp", [-0.1, 1.1, 10.0, float("nan")])
def test_a_ramp_that_is_no_share_of_training_is_refused(ramp: float) -> None:
    with pytest.raises(ValueError, match=rf"InstructionMasking\.ramp is {ramp}; give a share of training"):
        InstructionMasking(ramp)
