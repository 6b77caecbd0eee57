"""Remasking: the schedule holds, the rates are the paper's, and every decode ends."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from coda.model import CoDALanguageModel
from coda.model.blocks_coda import Block
from coda.model.remasking_coda import Committed, ConfidenceDrop, Remasking, ReMDM
from tests.model.decoding import MASK, PROMPTS, assert_rows_are_independent, generate, padded, small_model

REMASKINGS: list[dict[str, Any]] = [
    {"remasking": "remdm", "remasking_rate": 0.3, "steps": 6},
    {"remasking": "remdm", "remasking_rate": 0.3, "steps": 6, "alg": "origin"},
    {"remasking": "remdm", "remasking_rate": 0.5, "block_length": 4},
    {"remasking": "confidence_drop", "remasking_rate": 0.1},
    {"remasking": "confidence_drop", "remasking_rate": 0.05, "threshold": 0.3, "block_length": 4},
    {"remasking": "confidence_drop", "remasking_rate": 0.05, "block_length": 4, "cache": "dual"},
]
every_remasking = pytest.mark.parametrize("remasking", REMASKINGS, ids=str)


@pytest.fixture(scope="module")
def model() -> CoDALanguageModel:
    return small_model()


def remasked(out: Any) -> int:
    return sum(int(((before != MASK) & (after == MASK)).sum()) for before, after in pairwise(out.history))


def changed(out: Any) -> int:
    return sum(int(((a != MASK) & (b != MASK) & (a != b)).sum()) for a, b in pairwise(out.history))


@every_remasking
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_in_a_batch_is_the_row_alone(model: CoDALanguageModel, remasking: dict[str, Any], side: str) -> None:
    assert_rows_are_independent(model, side, temperature=0.9, **remasking)


@every_remasking
def test_given_tokens_stay_and_every_mask_is_filled(model: CoDALanguageModel, remasking: dict[str, Any]) -> None:
    inputs, mask = padded("left")
    out = generate(model, inputs, mask, seed=0, temperature=0.9, **remasking)
    given = inputs != MASK
    assert all(torch.equal(canvas[:, : inputs.shape[1]][given], inputs[given]) for canvas in out.history)
    assert not (out.sequences == MASK).any()
    assert remasked(out) + changed(out) > 0, "the case remasks nothing"


def test_under_remdm_the_schedule_s_number_of_masks_holds(model: CoDALanguageModel) -> None:
    settings = {"steps": 5, "remasking": "remdm", "remasking_rate": 0.4, "max_new_tokens": 40, "temperature": 1.0}
    out = generate(model, [[1]], seed=0, **settings)
    assert out.nfe == 5
    assert [int((canvas == MASK).sum()) for canvas in out.history] == [32, 24, 16, 8, 0]
    assert remasked(out) + changed(out) > 0


def test_remdm_keeps_the_marginals_of_origin(model: CoDALanguageModel) -> None:
    """After step i of N the share 1 - (1 - eps)(i + 1)/N is masked, remasking or not; 64 x 60 tokens, 5 sigma."""
    eps, steps, rows, new = 0.1, 4, 64, 60
    settings = {"alg": "origin", "steps": steps, "eps": eps, "remasking": "remdm", "remasking_rate": 0.3}
    out = generate(model, [[1]] * rows, max_new_tokens=new, seed=0, temperature=1.0, **settings)
    for i, canvas in enumerate(out.history[:-1]):
        share = 1 - (1 - eps) * (i + 1) / steps
        sigma = (rows * new * share * (1 - share)) ** 0.5
        assert abs(int((canvas == MASK).sum()) - rows * new * share) < 5 * sigma
    assert remasked(out) + changed(out) > 100


def test_the_rate_of_remdm_is_capped_so_that_noise_never_grows() -> None:
    block, remdm = Block(0, 9, 9, 4), ReMDM(0.3, eps=0.0)
    rates = []
    for block.step in range(4):
        rates.append(remdm.probability(block))
    assert rates == pytest.approx([0.0, 0.3, 0.3, 0.0])  # nothing is committed yet; nothing comes after
    block.step = 2
    assert ReMDM(0.9, eps=0.0).probability(block) == pytest.approx(0.25 / 0.5)


def test_tokens_are_remasked_once_and_only_where_probability_fell() -> None:
    revisable = torch.tensor([[True, True, True, False]])
    was, now = torch.tensor([[0.9, 0.9, 0.5, 0.9]]).log(), torch.tensor([[0.5, 0.8, 0.6, 0.1]]).log()
    blocks = [Block(0, 4, 4, 4)]
    rule = ConfidenceDrop(0.2)
    noise = torch.zeros(1, 4)
    assert not rule.choose(Committed(revisable, was, None, noise, blocks)).any()
    assert rule.choose(Committed(revisable, was, now, noise, blocks)).tolist() == [[True, False, False, False]]
    assert not rule.choose(Committed(revisable, was, now, noise, blocks)).any()


def test_what_confidence_drop_sees_is_the_network_s_probability_of_the_committed_tokens(
    model: CoDALanguageModel,
) -> None:
    """A recorder in its place: the second step's view of the token that the first step committed."""
    seen: list[Committed] = []

    class Watching(Remasking):
        reads_committed = True

        def choose(self, committed: Committed) -> torch.Tensor:
            seen.append(committed)
            return torch.zeros_like(committed.revisable)

    out = generate(model, [PROMPTS[0]], remasking=Watching(), seed=0)
    assert seen[0].current is None
    after = out.history[0]
    column = int(seen[1].revisable.nonzero()[0, 1])
    logits = model(after).logits[0, column - 1].detach().clone()
    logits[MASK] = -torch.inf
    expected = logits.log_softmax(-1)[after[0, column]]
    assert seen[2].current is not None
    assert float(seen[2].current[0, column]) == pytest.approx(float(expected), abs=1e-5)


def test_without_remasking_enough_nothing_changes(model: CoDALanguageModel) -> None:
    plain = generate(model, [PROMPTS[0]], seed=0).sequences
    ours = generate(model, [PROMPTS[0]], seed=0, remasking="confidence_drop", remasking_rate=0.9999).sequences
    assert torch.equal(plain, ours)
