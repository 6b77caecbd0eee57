"""Which tokens are written, and which first: against a slow reference, and on predictions made by hand."""

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coda.model import CoDAConfig, CoDAGenerationConfig, CoDALanguageModel, CoDAOutput
from coda.model.generation_coda import CoDAGenerationMixin

VOCAB, MASK = 40, 39


class Oracle(CoDAGenerationMixin, nn.Module):
    """A model whose logits at every position are fixed: ``probabilities`` [L, V], the last entry being the mask."""

    def __init__(self, probabilities: Tensor, shift: bool = False) -> None:
        super().__init__()
        length, vocab = probabilities.shape
        self.config = SimpleNamespace(
            mask_token_id=vocab - 1, vocab_size=vocab, shift=shift, max_position_embeddings=length
        )
        self.generation_config = CoDAGenerationConfig()
        self.lm_head = nn.Identity()
        self.states = probabilities.double().log()

    def forward(self, ids: Tensor, attention_mask: Tensor | None, output_logits: bool) -> CoDAOutput:
        assert not output_logits
        return CoDAOutput(last_hidden_state=self.states[: ids.shape[1]].expand(len(ids), -1, -1))


def peaked(tokens: list[int], vocab: int) -> Tensor:
    """Predictions [L, vocab] that are sure of one token each."""
    return 0.9 * torch.eye(vocab)[tokens] + 0.1 / vocab


def order(probabilities: list[list[float]], **settings: Any) -> list[int]:
    """In which order the positions are committed, one per step; no mass on the mask."""
    rows = torch.tensor([[*row, 0.0] for row in probabilities])
    mask, length = rows.shape[1] - 1, len(rows)
    settings = {"max_new_tokens": 0, "seed": 0, "output_history": True, "return_dict_in_generate": True} | settings
    out = Oracle(rows).diffusion_generate(torch.full((1, length), mask), **settings)
    canvases = [torch.full((length,), mask), *[canvas[0] for canvas in out.history]]
    changed = [(a != b).nonzero().flatten().tolist() for a, b in pairwise(canvases)]
    assert all(len(positions) == 1 for positions in changed)
    return [positions[0] for positions in changed]


def decode_slowly(model: CoDALanguageModel, ids: list[int], steps: int, alg: str) -> list[int]:
    """The definition in plain loops: all logits, one position after the other, the best committed first."""
    ids, count, offset = list(ids), ids.count(MASK), int(model.config.shift)
    for step in range(steps):
        logits = model(torch.tensor([ids])).logits[0].double()
        candidates = []
        for position in (i for i, token in enumerate(ids) if token == MASK):
            row = logits[position - offset].tolist()
            row[MASK] = -math.inf
            total = sum(math.exp(x - max(row)) for x in row)
            probs = [math.exp(x - max(row)) / total for x in row]
            best, second = sorted(probs, reverse=True)[:2]
            confidence = {
                "maskgit_plus": best,
                "topk_margin": best - second,
                "entropy": sum(p * math.log(p) for p in probs if p > 0),
            }[alg]
            candidates.append((-confidence, position, probs.index(best)))
        left = count * (steps - 1 - step) // steps
        for _, position, token in sorted(candidates)[: len(candidates) - left]:
            ids[position] = token
    return ids


@pytest.mark.parametrize("shift", [True, False], ids=["shifted", "unshifted"])
@pytest.mark.parametrize("steps", [1, 3, 9])
@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
@torch.no_grad()
def test_decoding_equals_the_slow_reference(alg: str, steps: int, shift: bool) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = CoDAConfig(**sizes, **heads, initializer_range=0.3, mask_token_id=MASK, pad_token_id=0, shift=shift)
    model = CoDALanguageModel._from_config(config, dtype=torch.float64).eval()
    for prompt in ([5, 8, MASK, MASK, 9, MASK, 7, 21, MASK], [11, 30]):
        out = model.diffusion_generate(torch.tensor([prompt]), max_new_tokens=5, alg=alg, steps=steps, temperature=0.0)
        assert out[0].tolist() == decode_slowly(model, [*prompt, *[MASK] * 5], steps, alg)


@pytest.mark.parametrize("alg", ["origin", "maskgit_plus", "topk_margin", "entropy"])
def test_under_shift_the_state_before_a_token_predicts_it(alg: str) -> None:
    probabilities = peaked([1, 2, 3, 4], vocab=6)
    inputs = torch.tensor([[0, 5, 5, 5]])
    settings = {"max_new_tokens": 0, "alg": alg, "temperature": 0.0}
    assert Oracle(probabilities, shift=True).diffusion_generate(inputs, **settings).tolist() == [[0, 1, 2, 3]]
    assert Oracle(probabilities, shift=False).diffusion_generate(inputs, **settings).tolist() == [[0, 2, 3, 4]]


def test_without_shift_the_first_token_may_be_masked() -> None:
    out = Oracle(peaked([1, 2, 3], vocab=6)).diffusion_generate(
        torch.full((1, 3), 5), max_new_tokens=0, temperature=0.0
    )
    assert out.tolist() == [[1, 2, 3]]


# Who is first depends on the measure: highest probability 2, 0, 1; widest gap 1, 2, 0; lowest entropy 0, 2, 1.
CRAFTED = [[0.50, 0.50, 0.0, 0.0, 0.0], [0.45, 0.1375, 0.1375, 0.1375, 0.1375], [0.51, 0.40, 0.09, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("alg", "expected"), [("maskgit_plus", [2, 0, 1]), ("topk_margin", [1, 2, 0]), ("entropy", [0, 2, 1])]
)
def test_each_measure_has_its_own_order(alg: str, expected: list[int]) -> None:
    assert order(CRAFTED, alg=alg, temperature=0.0) == expected


@pytest.mark.parametrize(
    "sharpening", [{"temperature": 0.01}, {"temperature": 1.0, "top_p": 0.3}, {"top_k": 1}], ids=str
)
@pytest.mark.parametrize(
    ("alg", "expected"), [("maskgit_plus", [2, 0, 1]), ("topk_margin", [1, 2, 0]), ("entropy", [0, 2, 1])]
)
def test_confidence_is_the_models_own_not_the_sharpened(
    alg: str, expected: list[int], sharpening: dict[str, Any]
) -> None:
    """After temperature or truncation all three predictions are certain and would tie."""
    crafted = [[0.501, 0.499, 0.0, 0.0, 0.0], *CRAFTED[1:]]
    assert order(crafted, alg=alg, **{"temperature": 1.0} | sharpening) == expected


def test_the_confidence_of_maskgit_plus_is_that_of_the_drawn_token() -> None:
    """0 and 1 are drawn for every position; where the unlikely 1 comes up, it waits for the likely ones."""
    probabilities = torch.tensor([[0.8, 0.2, 0.0]] * 50)
    settings = {"alg": "maskgit_plus", "temperature": 1.0, "max_new_tokens": 0, "steps": 1, "seed": 0}
    drawn = Oracle(probabilities).diffusion_generate(torch.full((1, 50), 2), **settings)[0]
    unlikely = int((drawn == 1).sum())
    assert 2 <= unlikely <= 20
    settings |= {"steps": 2, "output_history": True, "return_dict_in_generate": True}
    first = Oracle(probabilities).diffusion_generate(torch.full((1, 50), 2), **settings).history[0][0]
    assert (first != 2).sum() == 25
    assert not (first == 1).any()


def test_what_is_not_committed_is_drawn_anew() -> None:
    """Of 2,500 positions half wait, all 500 unlikely draws among them; drawn again, a fifth is unlikely, within 5 sigma."""
    probabilities = torch.tensor([[0.8, 0.2, 0.0]] * 50)
    settings = {"alg": "maskgit_plus", "temperature": 1.0, "max_new_tokens": 0, "steps": 2, "seed": 0}
    out = Oracle(probabilities).diffusion_generate(torch.full((50, 50), 2), **settings)
    assert abs(int((out == 1).sum()) - 1_250 * 0.2) < 5 * (1_250 * 0.2 * 0.8) ** 0.5


def test_mass_on_the_mask_is_neither_drawn_nor_counted() -> None:
    """Position 0 puts .6 on the mask; of the rest it is sure, unlike position 1."""
    rows = torch.tensor([[0.4, 0.0, 0.6], [0.5, 0.5, 0.0], [0.1, 0.3, 0.6]])
    for alg in ("maskgit_plus", "topk_margin", "entropy"):
        settings = {
            "alg": alg,
            "steps": 3,
            "max_new_tokens": 0,
            "output_history": True,
            "return_dict_in_generate": True,
        }
        out = Oracle(rows).diffusion_generate(torch.full((1, 3), 2), temperature=0.0, **settings)
        assert [canvas[0].tolist() for canvas in out.history] == [[0, 2, 2], [0, 2, 1], [0, 0, 1]]


def test_ties_are_resolved_from_left_to_right() -> None:
    assert order([[0.5, 0.5]] * 6, alg="entropy", temperature=0.0) == [0, 1, 2, 3, 4, 5]


def test_alg_temp_draws_the_order_as_gumbel_noise_on_confidence_would() -> None:
    """The first of two positions follows a softmax of confidence / alg_temp; 4,000 rows, 5 sigma."""
    rows, alg_temp = 4_000, 0.5
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0]])
    settings = {"alg": "maskgit_plus", "steps": 2, "max_new_tokens": 0, "alg_temp": alg_temp, "temperature": 0.0}
    out = Oracle(probabilities).diffusion_generate(
        torch.full((rows, 2), 2), seed=0, output_history=True, return_dict_in_generate=True, **settings
    )
    share = float((out.history[0][:, 0] != 2).float().mean())
    weights = [p ** (1 / alg_temp) for p in (0.9, 0.6)]  # exp(log p / alg_temp)
    expected = weights[0] / sum(weights)
    assert abs(share - expected) < 5 * (expected * (1 - expected) / rows) ** 0.5


def test_tokens_of_many_rows_follow_the_predicted_distribution() -> None:
    """Noise and drawing together: 20,000 rows, each token's count within 5 sigma of its binomial."""
    rows, probs = 20_000, [0.5, 0.25, 0.15, 0.07, 0.03]
    model = Oracle(torch.tensor([[*probs, 0.0]]))
    out = model.diffusion_generate(torch.full((rows, 1), 5), max_new_tokens=0, temperature=1.0, seed=0)
    for count, p in zip(out.flatten().bincount(minlength=5).tolist(), probs, strict=True):
        assert abs(count - rows * p) < 5 * (rows * p * (1 - p)) ** 0.5


def test_a_bfloat16_model_is_sampled_in_float32() -> None:
    """5,000 rows draw 993 of 1,000 equal tokens, give or take 3; sums in bfloat16 could reach a few hundred."""
    vocab = 1_000
    model = Oracle(torch.tensor([[*[1 / vocab] * vocab, 0.0]]))
    model.states = model.states.bfloat16()
    out = model.diffusion_generate(torch.full((5_000, 1), vocab), max_new_tokens=0, temperature=1.0, seed=0)
    assert len(out.unique()) > 970


@pytest.mark.parametrize("settings", [{"alg": "origin"}, {"alg": "maskgit_plus", "alg_temp": 1.0}], ids=str)
def test_which_position_is_chosen_tells_nothing_about_the_token_drawn_there(settings: dict[str, Any]) -> None:
    """Two even tokens everywhere: among 10,000 or so committed first, half are the first one, within 5 sigma."""
    model = Oracle(torch.tensor([[0.5, 0.5, 0.0]] * 20))
    settings = {"steps": 2, "max_new_tokens": 0, "temperature": 1.0, "seed": 0, "output_history": True} | settings
    out = model.diffusion_generate(torch.full((1_000, 20), 2), return_dict_in_generate=True, **settings)
    zeros, ones = (int((out.history[0] == token).sum()) for token in (0, 1))
    assert zeros + ones > 5_000
    assert abs(zeros - (zeros + ones) / 2) < 5 * 0.5 * (zeros + ones) ** 0.5


def test_rows_without_masks_pass_through() -> None:
    inputs = torch.tensor([[0, 1, 2, 3], [0, 5, 5, 1]])
    out = Oracle(peaked([1, 2, 3, 4], vocab=6)).diffusion_generate(inputs, max_new_tokens=0, temperature=0.0)
    assert out.tolist() == [[0, 1, 2, 3], [0, 2, 3, 1]]
