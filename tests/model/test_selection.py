"""How many tokens a step commits: every rule against its definition in plain loops, and rows independent under each."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from coda.model import CoDALanguageModel
from coda.model.blocks_coda import Block, split_blocks
from coda.model.selection_coda import Candidates, CommitRule, EntropyBound, Factor, Threshold
from tests.model.decoding import MASK, NEW, PROMPTS, assert_rows_are_independent, generate, padded, small_model

RULES: list[dict[str, Any]] = [
    {"tokens_per_step": 3},
    {"threshold": 0.35},
    {"factor": 1.4},
    {"entropy_bound": 1.0},
    {"steps": 6, "block_length": 4},
    {"threshold": 0.35, "block_length": 3},
    {"alg": "origin", "steps": 8, "block_length": 3},
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)


@pytest.fixture(scope="module")
def model() -> CoDALanguageModel:
    return small_model()


@every_rule
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_in_a_batch_is_the_row_alone(model: CoDALanguageModel, rule: dict[str, Any], side: str) -> None:
    assert_rows_are_independent(model, side, temperature=0.8, **rule)


@every_rule
def test_given_tokens_stay_and_every_mask_is_filled(model: CoDALanguageModel, rule: dict[str, Any]) -> None:
    inputs, mask = padded("left")
    out = generate(model, inputs, mask, seed=0, **rule)
    assert torch.equal(out.sequences[:, : inputs.shape[1]][inputs != MASK], inputs[inputs != MASK])
    assert not (out.sequences == MASK).any()


def committed_per_step(out: Any, before: Tensor) -> list[int]:
    """Tokens that each step of a single row commits."""
    counts = [int((before == MASK).sum()), *(int((canvas == MASK).sum()) for canvas in out.history)]
    return [a - b for a, b in pairwise(counts)]


@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize("sure", [{"threshold": 1.01}, {"factor": 1e-9}, {"tokens_per_step": 1}], ids=str)
def test_a_rule_that_nothing_satisfies_is_one_token_per_step(
    model: CoDALanguageModel, alg: str, sure: dict[str, float]
) -> None:
    """The factor rule orders by probability whatever the algorithm."""
    plain_alg = "maskgit_plus" if "factor" in sure else alg
    for prompt in PROMPTS:
        plain = generate(model, [prompt], alg=plain_alg, seed=0)
        ours = generate(model, [prompt], alg=alg, seed=0, **sure)
        assert torch.equal(ours.sequences, plain.sequences)
        assert ours.nfe == plain.nfe == prompt.count(MASK) + NEW


def test_an_entropy_bound_of_zero_is_one_token_per_step(model: CoDALanguageModel) -> None:
    plain = generate(model, [[4, 5]], seed=0)
    assert torch.equal(generate(model, [[4, 5]], entropy_bound=0.0, seed=0).sequences, plain.sequences)


@pytest.mark.parametrize(
    "rule", [{"threshold": 1e-9}, {"factor": 1e9}, {"entropy_bound": 1e9}, {"tokens_per_step": 99}]
)
def test_a_rule_that_everything_satisfies_is_one_step(model: CoDALanguageModel, rule: dict[str, float]) -> None:
    one = generate(model, [[4, 5, MASK, 6]], seed=0, steps=1)
    ours = generate(model, [[4, 5, MASK, 6]], seed=0, **rule)
    assert ours.nfe == 1
    assert torch.equal(ours.sequences, one.sequences)


def test_tokens_per_step_commits_that_many(model: CoDALanguageModel) -> None:
    out = generate(model, [[4, 5]], max_new_tokens=8, tokens_per_step=3, seed=0)
    assert committed_per_step(out, torch.tensor([[4, 5, *[MASK] * 8]])) == [3, 3, 2]


def candidates(log_probs: Tensor, entropy: Tensor, eligible: Tensor) -> Candidates:
    score = (-entropy).masked_fill(~eligible, -torch.inf)
    ids = torch.zeros_like(eligible, dtype=torch.long)
    noise = torch.zeros_like(entropy)
    blocks = [Block(0, eligible.shape[1], int(row.sum()), 1) for row in eligible]
    return Candidates(eligible, ids, log_probs, score, noise, noise, ids, blocks, entropy)


def by_threshold(probs: list[float], entropy: list[float], tau: float) -> set[int]:
    surest = min(range(len(probs)), key=lambda i: entropy[i])
    return {i for i, p in enumerate(probs) if p >= tau} | {surest}


def by_factor(probs: list[float], entropy: list[float], factor: float) -> set[int]:
    order = sorted(range(len(probs)), key=lambda i: -probs[i])
    chosen = order[:1]
    for n in range(2, len(order) + 1):
        if not (n + 1) * (1 - probs[order[n - 1]]) < factor:
            break
        chosen = order[:n]
    return set(chosen)


def by_entropy(probs: list[float], entropy: list[float], bound: float) -> set[int]:
    order = sorted(range(len(probs)), key=lambda i: entropy[i])
    best = 1
    for n in range(1, len(order) + 1):
        few = [entropy[i] for i in order[:n]]
        if sum(few) - max(few) <= bound:
            best = n
    return set(order[:best])


@pytest.mark.parametrize(
    ("rule", "reference", "values"),
    [
        (Threshold, by_threshold, [0.2, 0.5, 0.9]),
        (Factor, by_factor, [0.3, 1.0, 2.5]),
        (EntropyBound, by_entropy, [0.05, 0.5, 2.0]),
    ],
    ids=["threshold", "factor", "entropy_bound"],
)
def test_rules_equal_their_definitions(rule: Any, reference: Any, values: list[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(40, 9, generator=generator, dtype=torch.float64) ** 0.3
    entropy = torch.rand(40, 9, generator=generator, dtype=torch.float64) * 2
    eligible = torch.rand(40, 9, generator=generator) < 0.7
    eligible[:, 0] = True
    for value in values:
        chosen = rule(value).choose(candidates(probs.log(), entropy, eligible))
        assert not (chosen & ~eligible).any()
        for row in range(40):
            places = eligible[row].nonzero().flatten().tolist()
            expected = reference(probs[row, places].tolist(), entropy[row, places].tolist(), value)
            assert set(chosen[row].nonzero().flatten().tolist()) == {places[i] for i in expected}


def test_a_row_without_candidates_commits_nothing() -> None:
    eligible = torch.zeros(1, 4, dtype=torch.bool)
    for rule in (Threshold(0.1), Factor(9.0), EntropyBound(9.0)):
        assert not rule.choose(candidates(torch.zeros(1, 4), torch.zeros(1, 4), eligible)).any()


def test_a_rule_of_one_s_own_may_be_given(model: CoDALanguageModel) -> None:
    class LeftToRight(CommitRule):
        def choose(self, candidates: Candidates) -> Tensor:
            return candidates.eligible & (candidates.eligible.cumsum(dim=1) == 1)

    history = generate(model, [[4, 5]], commit=LeftToRight(), seed=0).history
    assert [int((canvas[0] == MASK).int().argmax()) for canvas in history[:-1]] == list(range(3, 2 + NEW))


def test_an_order_of_one_s_own_may_be_given(model: CoDALanguageModel) -> None:
    ours = generate(model, [[4, 5]], alg=lambda prediction: prediction.log_probs, seed=0).sequences
    assert torch.equal(ours, generate(model, [[4, 5]], alg="maskgit_plus", seed=0).sequences)


@pytest.mark.parametrize(
    ("masked", "length", "spans"),
    [
        ([1, 2, 3, 4, 5], 2, [(1, 3, 2), (3, 5, 2), (5, 6, 1)]),
        ([1, 2, 3, 4, 5], None, [(1, 6, 5)]),
        ([1, 9], 4, [(1, 2, 1), (9, 10, 1)]),
        ([1, 3, 9], 4, [(1, 4, 2), (9, 10, 1)]),
        ([], 4, []),
    ],
)
def test_blocks_begin_at_masked_columns(
    masked: list[int], length: int | None, spans: list[tuple[int, int, int]]
) -> None:
    blocks = split_blocks(masked, length, None)
    assert [(block.start, block.stop, block.masked) for block in blocks] == spans
    assert [block.steps for block in blocks] == [block.masked for block in blocks]


@pytest.mark.parametrize(
    ("count", "length", "steps"), [(256, 32, 64), (256, 32, 100), (7, 3, 3), (100, 7, 41), (1, 1, 5)]
)
def test_blocks_share_the_steps(count: int, length: int, steps: int) -> None:
    paces = [block.steps for block in split_blocks(list(range(1, count + 1)), length, steps)]
    assert sum(paces) == steps
    assert min(paces) >= 1
    assert max(paces[:-1], default=1) - min(paces[:-1], default=1) <= 1


@pytest.mark.parametrize("steps", [6, 9])
def test_scheduled_blocks_take_the_steps_that_were_asked_for(model: CoDALanguageModel, steps: int) -> None:
    out = generate(model, [[4, 5]], max_new_tokens=12, block_length=4, steps=steps, seed=0)
    assert out.nfe == steps
    for canvas in out.history:  # a block is left when it is full
        masks = (canvas[0] == MASK).nonzero().flatten().tolist()
        assert not masks or (canvas[0, 2 + (masks[0] - 2) // 4 * 4 + 4 :] == MASK).all()
