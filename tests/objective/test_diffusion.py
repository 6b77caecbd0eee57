"""The diffusion objective against its formula, written out with all logits in float64."""

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coda.masking import BlockMasking, MaskingStrategy, RandomMasking
from coda.objective import DiffusionObjective, InverseTime, LossWeight, UniformTime, UniformWeight
from coda.objective.diffusion import Denominator

BATCH, LENGTH, HIDDEN, VOCAB = 5, 9, 4, 13
DENOMINATORS: tuple[Denominator, ...] = get_args(Denominator)
WEIGHTS: dict[str, LossWeight] = {"1/t": InverseTime(), "clipped": InverseTime(2.0), "uniform": UniformWeight()}


def case(shift: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """Row 0: nothing maskable. Row 1: maskable but not masked. Row 2: all masked. Rows 3 and 4: mixed."""
    generator = torch.Generator().manual_seed(seed)
    maskable = torch.rand(BATCH, LENGTH, generator=generator) < 0.7
    maskable[0], maskable[2] = False, True
    if shift:
        maskable[:, 0] = False
    masked = maskable & (torch.rand(BATCH, LENGTH, generator=generator) < 0.6)
    masked[1], masked[2] = False, maskable[2]
    return {
        "hidden": torch.randn(BATCH, LENGTH, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_(),
        "head": torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_(),
        "target_ids": torch.randint(VOCAB, (BATCH, LENGTH), generator=generator),
        "masked": masked,
        "maskable": maskable,
        "t": 0.1 + 0.9 * torch.rand(BATCH, generator=generator, dtype=torch.float64),
    }


def token_nll(hidden: Tensor, head: Tensor, target_ids: Tensor, shift: bool) -> tuple[Tensor, Tensor]:
    """-log p of every token [B, L] and the most probable one; with ``shift``, column 0 means nothing."""
    logits = hidden @ head.T
    if shift:
        logits = logits.roll(1, dims=1)
    nll = -logits.log_softmax(dim=-1).gather(2, target_ids[..., None]).squeeze(2)
    return nll, logits.argmax(dim=-1)


def reference_loss(batch: dict[str, Tensor], weight: LossWeight, denominator: str, shift: bool) -> Tensor:
    """L = 1/D sum_b sum_n w(t_b) masked_bn -log p(x_bn)."""
    nll, _ = token_nll(batch["hidden"], batch["head"], batch["target_ids"], shift)
    row_sums = (nll * batch["masked"]).sum(dim=1) * weight(batch["t"])
    counts = batch["maskable"].sum(dim=1)
    if denominator == "sequence":
        return torch.stack([s / c for s, c in zip(row_sums, counts, strict=True) if c > 0]).mean()
    sizes = {"maskable": counts.sum(), "tokens": BATCH * LENGTH, "masked": batch["masked"].sum()}
    return row_sums.sum() / sizes[denominator]


def gradients(loss: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, (batch["hidden"], batch["head"]))


def assert_equal(ours: Any, expected: Any) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0.0)


@pytest.mark.parametrize("chunk_size", [1, 4, 1_000, None])
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_loss_and_gradients_equal_the_reference(
    denominator: Denominator, weight: LossWeight, shift: bool, chunk_size: int | None
) -> None:
    batch = case(shift)
    out = DiffusionObjective(None, weight, denominator, shift, chunk_size)(**batch)
    loss, expected = out.loss_sum / out.denominator, reference_loss(batch, weight, denominator, shift)
    assert_equal(loss, expected)
    assert_equal(gradients(loss, batch), gradients(expected, batch))


@pytest.mark.parametrize("shift", [True, False])
def test_monitors_are_the_counts_of_each_row(shift: bool) -> None:
    batch = case(shift)
    _, prediction = token_nll(batch["hidden"], batch["head"], batch["target_ids"], shift)
    batch["target_ids"][2, ::2] = prediction[2, ::2]
    batch["target_ids"][2, 1::2] = (prediction[2, 1::2] + 1) % VOCAB
    nll, _ = token_nll(batch["hidden"], batch["head"], batch["target_ids"], shift)
    correct = prediction == batch["target_ids"]
    out = DiffusionObjective(shift=shift)(**batch)
    assert_equal(out.nll, (nll * batch["masked"]).sum(dim=1).detach())
    assert out.correct.tolist() == (correct & batch["masked"]).sum(dim=1).tolist()
    assert out.masked.tolist() == batch["masked"].sum(dim=1).tolist()
    assert out.maskable.tolist() == batch["maskable"].sum(dim=1).tolist()
    assert 0 < out.correct.sum() < out.masked.sum(), "the case does not tell right from wrong"


def test_all_but_the_loss_is_detached() -> None:
    out = DiffusionObjective()(**case())
    assert out.loss_sum.requires_grad and out.loss_sum.shape == out.denominator.shape == ()
    others = (out.denominator, out.nll, out.correct, out.masked, out.maskable)
    assert not any(x.requires_grad for x in others)


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_a_batch_without_masked_tokens_gives_a_zero_loss_and_zero_gradients(denominator: Denominator) -> None:
    batch = case()
    batch["masked"] = torch.zeros_like(batch["masked"])
    out = DiffusionObjective(denominator=denominator)(**batch)
    assert out.loss_sum.item() == 0.0
    assert all((grad == 0).all() for grad in gradients(out.loss_sum, batch))
    assert out.nll.tolist() == out.correct.tolist() == [0.0] * BATCH


def released_loss(batch: dict[str, Tensor]) -> Tensor:
    """The released model's numbering and scale: logits[..., :-1, :] predict ids[..., 1:] where loss_mask[..., 1:]."""
    logits = (batch["hidden"] @ batch["head"].T)[..., :-1, :]
    losses = F.cross_entropy(logits.flatten(0, 1), batch["target_ids"][..., 1:].flatten(), reduction="none")
    losses = losses.view(BATCH, LENGTH - 1).masked_fill(~batch["masked"][..., 1:], 0)
    return (batch["t"].reciprocal()[:, None] * losses).sum() / (BATCH * LENGTH)


@pytest.mark.parametrize("seed", range(3))
def test_the_tokens_denominator_gives_the_released_loss(seed: int) -> None:
    batch = case(seed=seed)
    out = DiffusionObjective(weight=InverseTime(), denominator="tokens")(**batch)
    loss, expected = out.loss_sum / out.denominator, released_loss(batch)
    assert_equal(loss, expected)
    assert_equal(gradients(loss, batch), gradients(expected, batch))


@pytest.mark.parametrize("shift", [True, False])
def test_the_shift_predicts_a_token_from_the_state_before_it(shift: bool) -> None:
    """A model whose state i spells token i + 1 (shifted) or token i (not) is right about everything."""
    ids = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    hidden = 50.0 * F.one_hot(ids.roll(-1, dims=1) if shift else ids, VOCAB).float()
    masked = torch.ones_like(ids, dtype=torch.bool)
    masked[:, 0] = False
    args = (hidden, torch.eye(VOCAB), ids, masked, masked, torch.ones(2))
    right, wrong = DiffusionObjective(shift=shift)(*args), DiffusionObjective(shift=not shift)(*args)
    assert right.correct.tolist() == right.masked.tolist()
    assert right.loss_sum.item() == pytest.approx(0.0, abs=1e-6)
    assert wrong.correct.sum() == 0 and wrong.loss_sum > 100


def test_unshifted_every_token_is_predictable() -> None:
    maskable = torch.tensor([[True, True, False, True]])
    segments = torch.tensor([[0, 0, 1, 1]])
    assert torch.equal(DiffusionObjective(shift=False).predictable(maskable, segments), maskable)


def test_shifted_the_first_token_of_a_row_is_not_predictable() -> None:
    maskable = torch.tensor([[True, True, False, True], [False, True, True, True]])
    expected = [[False, True, False, True], [False, True, True, True]]
    assert DiffusionObjective().predictable(maskable).tolist() == expected
    assert maskable[0, 0], "the input was modified"


def test_shifted_the_first_token_of_a_document_is_not_predictable() -> None:
    """Segment numbers need not start at 0 nor grow; a document of one token has none to predict."""
    segments = torch.tensor([[0, 0, 1, 1, 2, 3], [7, 7, 7, 2, 2, 2]])
    maskable = torch.ones_like(segments, dtype=torch.bool)
    maskable[1, 5] = False
    expected = [[False, True, False, True, False, False], [False, True, True, False, True, False]]
    assert DiffusionObjective().predictable(maskable, segments).tolist() == expected
    assert maskable.sum() == 11, "the input was modified"


@pytest.mark.parametrize("split", [[2, 3], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_sums_of_micro_batches_are_the_sums_of_the_batch(denominator: Denominator, split: list[int]) -> None:
    """Summed losses over summed denominators: rows with few targets weigh no more for being alone."""
    batch = case()
    objective = DiffusionObjective(denominator=denominator, chunk_size=3)
    shared = {"head": batch["head"]}
    rows = {name: value.split(split) for name, value in batch.items() if name != "head"}
    outs = [objective(**{name: parts[i] for name, parts in rows.items()}, **shared) for i in range(len(split))]
    whole = objective(**batch)
    total = torch.stack([out.denominator for out in outs]).sum()
    loss = torch.stack([out.loss_sum / total for out in outs]).sum()
    expected = whole.loss_sum / whole.denominator
    torch.testing.assert_close(total, whole.denominator, atol=0.0, rtol=0.0)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0.0)
    torch.testing.assert_close(gradients(loss, batch), gradients(expected, batch), atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("strategy", [RandomMasking(), BlockMasking([4])], ids=["random", "block"])
def test_the_default_loss_of_a_uniform_model_is_log_of_the_vocabulary(strategy: MaskingStrategy) -> None:
    """The bound is unbiased: w(t) = 1/t undoes the masking rate t. Within 5 standard errors of the row means."""
    rows, eps = 20_000, 1e-3
    generator = torch.Generator().manual_seed(0)
    objective = DiffusionObjective(UniformTime(eps))
    ids = torch.zeros(rows, LENGTH, dtype=torch.long)
    maskable = objective.predictable(torch.ones_like(ids, dtype=torch.bool))
    t = objective.time.sample(torch.arange(rows), rows, torch.rand(rows, generator=generator))
    batch = strategy(ids, maskable, t, 0.0, mask_token_id=1, generator=generator)
    hidden, head = torch.zeros(rows, LENGTH, 1), torch.zeros(VOCAB, 1)
    out = objective(hidden, head, batch.target_ids, batch.masked, batch.maskable, t)
    error = (out.nll / t / out.maskable).std() / rows**0.5
    bound = torch.tensor(float(VOCAB)).log()
    assert 5 * error < 0.2 * bound, "the sample is too small to tell the bound from another number"
    assert abs(out.loss_sum / out.denominator - bound) < 5 * error


def test_the_defaults_are_the_likelihood_bound_per_token() -> None:
    objective = DiffusionObjective()
    assert isinstance(objective.weight, InverseTime) and objective.weight.max_weight is None
    assert (objective.denominator, objective.shift, objective.time.eps) == ("maskable", True, 1e-3)


@pytest.mark.parametrize("bad", ["mean", "", "Tokens"])
def test_an_unknown_denominator_is_refused_with_the_choices(bad: Any) -> None:
    with pytest.raises(ValueError, match=f"denominator is '{bad}'.*maskable, tokens, masked, sequence"):
        DiffusionObjective(denominator=bad)


@pytest.mark.parametrize("bad", [0, -1])
def test_a_chunk_without_rows_is_refused_by_name(bad: int) -> None:
    with pytest.raises(ValueError, match=f"chunk_size is {bad}"):
        DiffusionObjective(chunk_size=bad)
