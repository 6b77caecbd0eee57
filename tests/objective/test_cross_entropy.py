"""The chunked cross-entropy against plain PyTorch with all logits at once."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coda.objective import masked_linear_cross_entropy

N, HIDDEN, VOCAB = 23, 5, 17
CHUNK_SIZES = [1, 2, 7, N - 1, N, N + 1, 1_000, None]
Problem = tuple[Tensor, Tensor, Tensor, Tensor]


def problem(
    n: int = N, hidden: int = HIDDEN, vocab: int = VOCAB, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> Problem:
    """Random hidden states [n, hidden], head [vocab, hidden] (both want gradients), targets and weights [n]."""
    generator = torch.Generator().manual_seed(0)
    rows = (scale * torch.randn(n, hidden, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    head = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    target = torch.randint(vocab, (n,), generator=generator)
    return rows, head, target, torch.rand(n, generator=generator, dtype=torch.float64) * 5


def reference(rows: Tensor, head: Tensor, target: Tensor, token_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = rows @ head.T
    nll = F.cross_entropy(logits, target, reduction="none")
    return (nll * token_weight).sum(), nll, logits.argmax(dim=1) == target


def assert_equal(ours: Tensor | None, expected: Tensor | None) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0.0)


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_loss_equals_the_reference(chunk_size: int | None) -> None:
    args = problem()
    loss, nll, correct = masked_linear_cross_entropy(*args, chunk_size)
    expected_loss, expected_nll, expected_correct = reference(*args)
    assert_equal(loss, expected_loss)
    assert_equal(nll, expected_nll.detach())
    assert torch.equal(correct, expected_correct)


@pytest.mark.parametrize("upstream", [1.0, -2.5, 0.0])
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_gradients_equal_the_reference(chunk_size: int | None, upstream: float) -> None:
    """`upstream` is the gradient that arrives at the loss: what divides it by the denominator."""
    rows, head, *rest = problem()
    ours = torch.autograd.grad(upstream * masked_linear_cross_entropy(rows, head, *rest, chunk_size)[0], (rows, head))
    expected = torch.autograd.grad(upstream * reference(rows, head, *rest)[0], (rows, head))
    assert_equal(ours[0], expected[0])
    assert_equal(ours[1], expected[1])


@pytest.mark.parametrize("frozen", [0, 1], ids=["hidden", "head"])
def test_a_frozen_input_gets_no_gradient_and_the_other_the_same(frozen: int) -> None:
    args = problem()
    learned = 1 - frozen
    expected = torch.autograd.grad(reference(*args)[0], args[learned])[0]
    args[frozen].requires_grad_(False)
    masked_linear_cross_entropy(*args, chunk_size=4)[0].backward()
    assert args[frozen].grad is None
    assert_equal(args[learned].grad, expected)


@pytest.mark.parametrize("passes", [1, 2])
def test_gradients_reach_what_made_the_inputs_and_accumulate(passes: int) -> None:
    """The head may be tied to an embedding that also made the hidden states, and several micro-batches add up."""
    rows, head, target, token_weight = problem()

    def run(function: Callable[..., tuple[Tensor, ...]]) -> list[Tensor | None]:
        leaves = [x.detach().clone().requires_grad_() for x in (rows, head)]
        for _ in range(passes):
            hidden = leaves[0].tanh().index_select(0, target) + leaves[1][target]
            function(hidden, leaves[1], target, token_weight)[0].backward()
        return [leaf.grad for leaf in leaves]

    for ours, expected in zip(run(masked_linear_cross_entropy), run(reference), strict=True):
        assert_equal(ours, expected)


def test_inputs_are_not_modified() -> None:
    args = problem()
    before = [x.detach().clone() for x in args]
    masked_linear_cross_entropy(*args, chunk_size=4)[0].backward()
    assert all(torch.equal(x, y) for x, y in zip(args, before, strict=True))


def test_the_token_weights_get_no_gradient_and_monitors_carry_none() -> None:
    *args, token_weight = problem()
    loss, nll, correct = masked_linear_cross_entropy(*args, token_weight.requires_grad_())
    loss.backward()
    assert token_weight.grad is None
    assert not nll.requires_grad and not correct.requires_grad


def test_no_targets_give_a_zero_loss_and_zero_gradients() -> None:
    rows, head, target, token_weight = problem(n=0)
    loss, nll, correct = masked_linear_cross_entropy(rows, head, target, token_weight)
    loss.backward()
    assert loss.item() == 0.0 and nll.shape == correct.shape == (0,)
    assert rows.grad is not None and rows.grad.shape == (0, HIDDEN)
    assert head.grad is not None and (head.grad == 0).all() and head.grad.shape == head.shape


@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_second_backward_raises_instead_of_scaling_twice(retain_graph: bool) -> None:
    loss = masked_linear_cross_entropy(*problem())[0]
    loss.backward(retain_graph=retain_graph)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_no_grad_gives_the_same_values() -> None:
    args = problem()
    with_grad = masked_linear_cross_entropy(*args, chunk_size=4)
    with torch.no_grad():
        without = masked_linear_cross_entropy(*args, chunk_size=4)
    assert not without[0].requires_grad
    assert all(torch.equal(x, y) for x, y in zip(with_grad, without, strict=True))


@pytest.mark.parametrize("chunk_size", [1, 8])
def test_huge_logits_neither_overflow_nor_lose_the_gradient(chunk_size: int) -> None:
    rows, head, *rest = problem(scale=1e4)
    loss = masked_linear_cross_entropy(rows, head, *rest, chunk_size)[0]
    expected = reference(rows, head, *rest)[0]
    torch.testing.assert_close(loss, expected)
    ours, theirs = torch.autograd.grad(loss, rows)[0], torch.autograd.grad(expected, rows)[0]
    torch.testing.assert_close(ours, theirs)


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


def test_autocast_takes_bfloat16_products_and_a_float32_softmax() -> None:
    """Each token's loss is that of bfloat16 logits in a float32 softmax; a bfloat16 softmax is 100 times off."""
    rows, head, target, token_weight = problem(n=64, hidden=32, vocab=200, scale=0.3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, nll, _ = masked_linear_cross_entropy(rows, head, target, token_weight.float(), chunk_size=10)
    logits = rows.detach().bfloat16() @ head.detach().bfloat16().T
    precise = F.cross_entropy(logits.float(), target, reduction="none")
    coarse = F.cross_entropy(logits, target, reduction="none")
    assert loss.dtype == nll.dtype == torch.float32
    assert relative_error(nll, precise) < 1e-5
    assert relative_error(coarse, precise) > 1e-3, "the case does not tell the two apart"


def test_autocast_stays_close_to_float32_and_returns_gradients_in_the_parameters_type() -> None:
    """bfloat16 has 8 bits of significand: 2^-8 = .4% for each rounding; 2% bounds the few that meet in a gradient."""
    rows, head, target, token_weight = problem(n=64, hidden=32, vocab=200, scale=0.3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_linear_cross_entropy(rows, head, target, token_weight.float(), chunk_size=10)[0]
    expected = reference(rows.double(), head.double(), target, token_weight)[0]
    assert relative_error(loss.detach(), expected.detach()) < 2e-3
    for ours, theirs in zip(gradients(loss, rows, head), gradients(expected, rows, head), strict=True):
        assert ours.dtype == torch.float32
        assert relative_error(ours, theirs) < 0.02


def test_the_gradient_of_a_bfloat16_head_is_accumulated_in_float32() -> None:
    """1,000 chunks of one row: a running sum in bfloat16 would stop growing after some 256 like contributions."""
    rows, head, target, _ = problem(n=1_000, vocab=7, dtype=torch.bfloat16)
    rows, target = rows.detach()[:1].expand(1_000, -1), torch.zeros_like(target)
    token_weight = torch.ones(1_000)
    loss = masked_linear_cross_entropy(rows, head, target, token_weight, chunk_size=1)[0]
    wide = head.detach().double().requires_grad_()
    expected = torch.autograd.grad(reference(rows.double(), wide, target, token_weight.double())[0], wide)[0]
    ours = torch.autograd.grad(loss, head)[0]
    assert ours.dtype == torch.bfloat16
    assert relative_error(ours, expected) < 0.02


def test_float16_gradients_are_made_in_float32() -> None:
    """A weight gradient of 2.9e5 is past float16, and no loss scale that comes later can bring it back."""
    hidden = torch.zeros(600, 4, dtype=torch.float16)
    hidden[:, 0] = 60.0
    hidden.requires_grad_()
    head = torch.zeros(8, 4, requires_grad=True)
    loss, _, _ = masked_linear_cross_entropy(hidden, head, torch.zeros(600, dtype=torch.long), torch.full((600,), 9.0))
    loss.backward()
    assert head.grad is not None
    assert head.grad.isfinite().all()
    assert head.grad[0, 0] == pytest.approx(-600 * 60 * 9 * 7 / 8, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_it_gives_the_same(autocast: bool) -> None:
    """In chunks of two sizes."""
    rows, head, target, token_weight = problem(vocab=200, dtype=torch.float32)
    found = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for compiled in (False, True):
            loss, *rest = masked_linear_cross_entropy(rows, head, target, token_weight, 10, compiled=compiled)
            found.append((loss.detach(), *rest, *gradients(loss, rows, head)))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=2e-2 if autocast else 1e-5)
