"""Hybrid decoding: with weight 0 it is the guide's own autoregressive decode, token for token, whatever the draft."""

from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from coda.model import CoDALanguageModel
from tests.model.decoding import MASK, NEW, PROMPTS, VOCAB, assert_rows_are_independent, generate, padded, small_model

DRAFTS: list[dict[str, Any]] = [
    {},
    {"block_length": 3},
    {"block_length": 4, "cache": "dual"},
    {"block_length": 4, "cache": "prefix", "cache_refresh": 2},
]
every_draft = pytest.mark.parametrize("draft", DRAFTS, ids=str)
PLAIN = [[5, 8, 9, 4], [11], [30, 2]]


@pytest.fixture(scope="module")
def model() -> CoDALanguageModel:
    return small_model()


@pytest.fixture(scope="module")
def guide() -> Qwen3ForCausalLM:
    torch.manual_seed(1)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3}
    return Qwen3ForCausalLM._from_config(Qwen3Config(**sizes, **heads), dtype=torch.float64).eval()


@torch.no_grad()
def autoregressive(guide: Any, prompt: list[int], new: int, **options: Any) -> list[int]:
    """Greedy decoding in the plainest way: the whole prefix again for every token."""
    ids = torch.tensor([[*prompt, *[MASK] * new]])
    for column in (ids[0] == MASK).nonzero().flatten().tolist():
        logits = guide(ids[:, :column], **options).logits[0, -1].clone()
        logits[MASK] = -torch.inf
        ids[0, column] = logits.argmax()
    return ids[0].tolist()


@every_draft
def test_with_weight_zero_the_guide_s_greedy_decode_comes_out(
    model: CoDALanguageModel, guide: Qwen3ForCausalLM, draft: dict[str, Any]
) -> None:
    for prompt in [*PLAIN, *PROMPTS]:
        out = generate(model, [prompt], guide=guide, seed=0, **draft)
        assert out.sequences[0].tolist() == autoregressive(guide, prompt, NEW)
        assert 1 <= out.nfe <= prompt.count(MASK) + NEW
        assert out.guide_nfe == out.nfe


@every_draft
def test_the_model_s_own_causal_pass_may_be_the_guide(model: CoDALanguageModel, draft: dict[str, Any]) -> None:
    causal = {"visible": lambda b, h, q, k: k <= q}
    for prompt in PLAIN:
        out = generate(model, [prompt], guide="self", seed=0, **draft)
        assert out.sequences[0].tolist() == autoregressive(model, prompt, NEW, **causal)


@every_draft
@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_independent(
    model: CoDALanguageModel, guide: Qwen3ForCausalLM, draft: dict[str, Any], weight: float, side: str
) -> None:
    assert_rows_are_independent(model, side, guide=guide, guide_weight=weight, temperature=0.9, **draft)


def test_sampling_with_weight_zero_does_not_depend_on_the_draft(
    model: CoDALanguageModel, guide: Qwen3ForCausalLM
) -> None:
    """The noise of a token differs between steps, so the draw is compared in distribution: 3,000 rows, 5 sigma."""
    rows = 3_000
    out = generate(model, [[5, 8]] * rows, max_new_tokens=2, guide=guide, temperature=1.0, seed=0).sequences
    with torch.no_grad():
        logits = guide(torch.tensor([[5, 8]])).logits[0, -1].clone()
        logits[MASK] = -torch.inf
        first = logits.softmax(-1)
        likely = int(first.argmax())
        second = guide(torch.tensor([[5, 8, likely]])).logits[0, -1].clone()
        second[MASK] = -torch.inf
    for tokens, probs in ((out[:, 2], first), (out[out[:, 2] == likely][:, 3], second.softmax(-1))):
        counts = tokens.bincount(minlength=VOCAB)
        sigma = (len(tokens) * probs * (1 - probs)).sqrt()
        assert ((counts - len(tokens) * probs).abs() < 5 * sigma + 1).all()


def test_with_weight_one_everything_is_accepted(model: CoDALanguageModel, guide: Qwen3ForCausalLM) -> None:
    out = generate(model, [[5, 8]], guide=guide, guide_weight=1.0, seed=0)
    assert out.acceptance_rate == 1.0
    assert out.nfe == 1
    assert torch.equal(out.sequences, generate(model, [[5, 8]], steps=1, seed=0).sequences)


def test_a_guide_that_agrees_is_counted(model: CoDALanguageModel, guide: Qwen3ForCausalLM) -> None:
    inputs, mask = padded("left")
    out = generate(model, inputs, mask, guide=guide, seed=0)
    assert 0 <= out.acceptance_rate < 1
    assert out.row_nfe.max() == out.nfe


def test_the_guide_reads_each_accepted_token_once(model: CoDALanguageModel, guide: Qwen3ForCausalLM) -> None:
    """Its cache: the first pass reads the prompt and the draft, later ones begin where it disagreed."""
    lengths: list[int] = []
    hook = guide.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    out = generate(model, [[5, 8, 9, 4]], guide=guide, seed=0)
    hook.remove()
    filled = [0, *((canvas != MASK).sum() - 4 for canvas in out.history)]
    assert lengths[0] == 4 + NEW - 1
    assert all(
        length == NEW - done or length == NEW - done + 1 for length, done in zip(lengths[1:], filled[1:], strict=False)
    )


def test_a_row_without_masks_passes_through(model: CoDALanguageModel, guide: Qwen3ForCausalLM) -> None:
    inputs = torch.tensor([[5, 6, 7, 8], [5, MASK, 3, MASK], [1, 2, 3, 4]])
    out = generate(model, inputs, max_new_tokens=0, guide=guide, seed=0)
    assert torch.equal(out.sequences[[0, 2]], inputs[[0, 2]])
    assert out.row_nfe.tolist()[::2] == [0, 0]
    assert out.sequences[1].tolist() == autoregressive(guide, inputs[1].tolist(), 0)
