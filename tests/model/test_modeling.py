"""Attention to both sides: against the causal parent, under padding, in packed rows; for each implementation."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from coda.model import CoDAConfig, CoDALanguageModel
from coda.model.modeling_coda import restarted_positions

VOCAB, LENGTH = 40, 9
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,  # 4 heads * 16 is not the hidden size
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # large enough for attention to matter
    "mask_token_id": 39,
    "pad_token_id": 0,
}
LAYER = [
    *[f"self_attn.{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")],
    *[f"mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")],
    *["input_layernorm.weight", "post_attention_layernorm.weight"],
]
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
every_mask_attention = pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])


def small_model(attention: str = "sdpa", **settings: Any) -> CoDALanguageModel:
    torch.manual_seed(0)
    config = CoDAConfig(**SMALL | settings)
    return CoDALanguageModel._from_config(config, attn_implementation=attention, dtype=torch.float64).eval()


def tokens(rows: int = 1, length: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCAB - 1, (rows, length), generator=torch.Generator().manual_seed(seed))


def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= k


def assert_close(ours: Tensor | None, expected: Tensor | None) -> None:
    """Norms, rotations and eager's softmax are float32: 1e-5, where a wrong mask moves logits by 1e-2 and more."""
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(autouse=True)
def without_grad_and_compiler() -> Iterator[None]:
    """Flex attention compiles itself for half a minute; its plain fallback takes the same block masks."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def run(attention: str) -> Callable[..., Tensor]:
    """Logits of the small model under ``attention``."""
    model = small_model(attention)
    if attention == "flex_attention":
        try:
            model(tokens(), attention_mask=torch.tensor([[1] * 8 + [0]]))
        except Exception as error:
            pytest.skip(f"flex_attention does not run on this machine: {error}")
    return lambda *args, **kwargs: model(*args, **kwargs).logits


@every_mask_attention
def test_every_token_looks_at_every_other(run: Callable[..., Tensor]) -> None:
    ids = tokens()
    base = run(ids)
    for changed in (0, LENGTH - 1):
        other = ids.clone()
        other[0, changed] = ids[0, changed] % (VOCAB - 2) + 1
        assert ((run(other) - base).abs().amax(dim=-1) > 1e-2).all()


@every_mask_attention
def test_a_mask_that_hides_nothing_changes_nothing(run: Callable[..., Tensor]) -> None:
    """The way on which a bidirectional model silently falls back to causal attention."""
    ids = tokens(rows=2)
    assert_close(run(ids, attention_mask=torch.ones_like(ids)), run(ids))


@every_mask_attention
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_is_the_row_alone(run: Callable[..., Tensor], side: str) -> None:
    short, long = tokens(length=5, seed=2), tokens(length=LENGTH)
    padding = LENGTH - 5
    sides = (padding, 0) if side == "left" else (0, padding)
    ids = torch.cat([torch.nn.functional.pad(short, sides, value=7), long])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(short), sides), torch.ones_like(long)])
    real = mask[0].bool()
    derived = run(ids, attention_mask=mask)
    given = run(ids, attention_mask=mask, position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0))
    for logits in (derived, given):
        assert_close(logits[:1, real], run(short))
        assert_close(logits[1:], run(long))
    visible_padding = run(ids)
    assert (visible_padding[:1, real] - run(short)).abs().max() > 1e-2


@every_mask_attention
def test_documents_of_a_packed_row_are_the_documents_alone(run: Callable[..., Tensor]) -> None:
    documents = [tokens(length=length, seed=length) for length in (4, 1, 6)]
    packed = torch.cat(documents, dim=1)
    segments = torch.tensor([[0] * 4 + [1] + [2] * 6])
    expected = torch.cat([run(document) for document in documents], dim=1)
    assert_close(run(packed, segment_ids=segments), expected)
    assert (run(packed) - expected).abs().max() > 1e-2


@every_mask_attention
def test_segments_and_padding_combine(run: Callable[..., Tensor]) -> None:
    first, second = tokens(length=4, seed=2), tokens(length=3, seed=3)
    packed = torch.cat([first, second, torch.full((1, 2), 7)], dim=1)
    segments = torch.tensor([[0] * 4 + [1] * 5])
    logits = run(packed, segment_ids=segments, attention_mask=torch.tensor([[1] * 7 + [0] * 2]))
    assert_close(logits[:, :4], run(first))
    assert_close(logits[:, 4:7], run(second))


@every_mask_attention
def test_segments_differ_by_row(run: Callable[..., Tensor]) -> None:
    ids = tokens(rows=2)
    segments = torch.tensor([[0] * 3 + [1] * 6, [5] * 7 + [6] * 2])
    together = run(ids, segment_ids=segments)
    for row in range(2):
        assert_close(together[row : row + 1], run(ids[row : row + 1], segment_ids=segments[row : row + 1]))


@every_mask_attention
def test_visible_restricts_attention_inside_the_documents(run: Callable[..., Tensor]) -> None:
    first, second = tokens(length=4, seed=2), tokens(length=5, seed=3)
    segments = torch.tensor([[0] * 4 + [1] * 5])
    logits = run(torch.cat([first, second], dim=1), segment_ids=segments, visible=causal)
    expected = torch.cat([run(document, visible=causal) for document in (first, second)], dim=1)
    assert_close(logits, expected)
    assert (run(first) - run(first, visible=causal)).abs().max() > 1e-2


def test_positions_restart_with_every_segment() -> None:
    segments = torch.tensor([[0, 0, 0, 1, 2, 2], [4, 4, 4, 4, 4, 4], [1, 0, 0, 1, 1, 1]])
    expected = [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5], [0, 0, 1, 0, 1, 2]]
    assert restarted_positions(segments).tolist() == expected


def test_the_backbone_gets_the_restarted_positions_unless_others_are_given() -> None:
    """Rotations are relative, so that logits alone would not tell; long rows lose precision without."""
    model, seen = small_model(), []
    model.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True)
    segments, given = torch.tensor([[0] * 4 + [1] * 5]), torch.arange(LENGTH)[None] + 3
    model(tokens(), segment_ids=segments)
    model(tokens(), segment_ids=segments, position_ids=given)
    assert seen[0].tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4]]
    assert torch.equal(seen[1], given)


@pytest.mark.parametrize("restriction", [{"segment_ids": torch.zeros(1, LENGTH)}, {"visible": causal}])
@pytest.mark.parametrize("attention", ["flash_attention_2", "kernels-community/flash_attention3"])
def test_flash_attention_refuses_what_it_cannot_mask(attention: str, restriction: dict[str, Any]) -> None:
    model = small_model()
    model.config._attn_implementation_internal = attention
    with pytest.raises(ValueError, match=f"attn_implementation is {attention}.*flex_attention or sdpa"):
        model(tokens(), **restriction)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_those_of_the_parents_layers_under_a_full_mask(attention: str) -> None:
    ours = small_model(attention)
    parent = Qwen3ForCausalLM._from_config(ours.config, attn_implementation="sdpa", dtype=torch.float64).eval()
    parent.load_state_dict(ours.state_dict())
    everything = {"full_attention": torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)}
    expected = parent.lm_head(parent.model(tokens(), attention_mask=everything).last_hidden_state)
    assert_close(ours(tokens()).logits, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_under_a_causal_restriction_logits_are_numbered_as_the_parents(attention: str) -> None:
    """Row i of a causal model predicts token i + 1: the parity holds only if nothing is shifted."""
    ours = small_model(attention)
    parent = Qwen3ForCausalLM._from_config(ours.config, attn_implementation=attention, dtype=torch.float64).eval()
    parent.load_state_dict(ours.state_dict())
    assert_close(ours(tokens(rows=2), visible=causal).logits, parent(tokens(rows=2)).logits)


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": False}], ids=["tied", "untied"])
def test_state_dict_keys_are_those_of_the_released_weights(settings: dict[str, Any]) -> None:
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    expected |= {f"model.layers.{layer}.{name}" for layer in range(2) for name in LAYER}
    assert small_model(**settings).state_dict().keys() == expected


def test_output_logits_false_leaves_the_head_alone() -> None:
    model = small_model()
    calls: list[int] = []
    model.lm_head.register_forward_hook(lambda *args: calls.append(1))
    without = model(tokens(), output_logits=False)
    assert without.logits is None
    assert not calls
    full = model(tokens())
    assert len(calls) == 1
    assert torch.equal(without.last_hidden_state, full.last_hidden_state)
    assert torch.equal(full.logits, model.lm_head(without.last_hidden_state))


def test_embeddings_may_stand_for_ids() -> None:
    model = small_model()
    assert_close(model(inputs_embeds=model.model.embed_tokens(tokens())).logits, model(tokens()).logits)


@torch.enable_grad()
def test_the_embedding_of_padding_learns() -> None:
    """Under S2 padding is part of the text that the model reads."""
    model = small_model()
    model(torch.full((1, 4), SMALL["pad_token_id"])).logits.logsumexp(-1).sum().backward()
    assert model.model.embed_tokens.weight.grad[SMALL["pad_token_id"]].abs().sum() > 0
