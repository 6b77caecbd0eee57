"""Caches of keys and values: exact when refreshed, rows independent, and as cheap as promised."""

from typing import Any

import pytest
import torch
from torch import Tensor

from coda.model import CoDALanguageModel
from coda.model.cache_coda import CanvasCache, DualCache
from tests.model.decoding import MASK, NEW, PROMPTS, assert_rows_are_independent, generate, padded, small_model

every_cache = pytest.mark.parametrize("cache", ["prefix", "dual"])


@pytest.fixture(scope="module", params=[True, False], ids=["shifted", "unshifted"])
def model(request: pytest.FixtureRequest) -> CoDALanguageModel:
    return small_model(shift=request.param)


@every_cache
@pytest.mark.parametrize("block_length", [1, 3, NEW])
@pytest.mark.parametrize("rule", [{}, {"steps": 14}, {"threshold": 0.3}, {"tokens_per_step": 2}], ids=str)
def test_a_cache_refreshed_at_every_step_is_the_uncached_decode(
    model: CoDALanguageModel, cache: str, block_length: int, rule: dict[str, Any]
) -> None:
    inputs, mask = padded("left")
    settings = {"block_length": block_length, "seed": 0, "temperature": 0.7, **rule}
    exact = generate(model, inputs, mask, **settings)
    refreshed = generate(model, inputs, mask, cache=cache, cache_refresh=1, **settings)
    assert torch.equal(exact.sequences, refreshed.sequences)
    assert all(torch.equal(a, b) for a, b in zip(exact.history, refreshed.history, strict=True))
    torch.testing.assert_close(exact.log_probs, refreshed.log_probs)


@every_cache
@pytest.mark.parametrize("rule", [{}, {"threshold": 0.3}, {"alg": "origin"}], ids=str)
@pytest.mark.parametrize("refresh", [None, 2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_independent_under_a_cache(
    model: CoDALanguageModel, cache: str, rule: dict[str, Any], refresh: int | None, side: str
) -> None:
    """They reach new blocks, where the cache is made anew, at different steps."""
    assert_rows_are_independent(
        model, side, cache=cache, cache_refresh=refresh, block_length=3, temperature=0.8, **rule
    )


@every_cache
def test_eager_attention_gives_the_same_tokens(model: CoDALanguageModel, cache: str) -> None:
    eager = small_model(shift=model.config.shift)
    eager.set_attn_implementation("eager")
    inputs, mask = padded("left")
    settings = {"cache": cache, "block_length": 3, "seed": 0}
    ours, theirs = (generate(network, inputs, mask, **settings).sequences for network in (model, eager))
    assert torch.equal(ours, theirs)


def test_a_cache_of_the_caller_s_may_be_used_again(model: CoDALanguageModel) -> None:
    policy = DualCache(refresh=3)
    settings = {"block_length": 4, "seed": 0}
    named = generate(model, [[4, 5]], cache="dual", cache_refresh=3, **settings).sequences
    for _ in range(2):
        assert torch.equal(generate(model, [[4, 5]], cache=policy, **settings).sequences, named)
    generate(model, [[4, 5, 6]] * 2, cache=policy, **settings)


def columns_computed(model: CoDALanguageModel, **settings: Any) -> list[int]:
    """How many tokens the backbone sees in each network evaluation."""
    seen: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    generate(model, [[1, 2, 3, 4]], max_new_tokens=6, block_length=2, seed=0, **settings)
    hook.remove()
    return seen


def test_a_step_computes_its_block_or_what_follows_the_prefix() -> None:
    """4 given tokens, blocks of 2, two steps each; a shifted model also computes the token before the block."""
    model = small_model()
    assert columns_computed(model) == [10] * 6
    assert columns_computed(model, cache="prefix") == [10, 7, 10, 5, 10, 3]
    assert columns_computed(model, cache="dual") == [10, 3, 10, 3, 10, 3]
    assert columns_computed(small_model(shift=False), cache="dual") == [10, 2, 10, 2, 10, 2]


def test_cached_states_are_those_of_the_tokens_when_the_block_began(model: CoDALanguageModel) -> None:
    """A slow reference: the second step of a block, with keys and values of the first step outside of it."""
    ids = torch.tensor([[1, 2, 3, 4, MASK, MASK, MASK, MASK]])
    out = generate(model, ids, max_new_tokens=0, block_length=2, cache="dual", seed=0)
    after_one, after_two = out.history[0], out.history[1]
    first = 4 - int(model.config.shift)
    cache = CanvasCache(8)
    everything = torch.arange(8)[None]
    model(ids, position_ids=everything, past_key_values=cache.at(everything), use_cache=True)
    columns = torch.arange(first, 6)[None]
    part = model(after_one[:, first:6], position_ids=columns, past_key_values=cache.at(columns), use_cache=True).logits
    position = int((after_one[0] == MASK).nonzero()[0])
    row = part[0, position - first - int(model.config.shift)].clone()
    row[MASK] = -torch.inf
    assert after_two[0, position] == row.argmax()


def test_the_cache_returns_all_columns_and_leaves_the_caller_s_tensors_alone() -> None:
    cache = CanvasCache(4)
    keys = torch.arange(8.0).view(2, 1, 4, 1)
    everything = torch.arange(4).expand(2, -1)
    assert torch.equal(cache.at(everything).update(keys, keys, 0)[0], keys)
    new = torch.tensor([[[[100.0]]]])
    returned, _ = cache.at(torch.tensor([[2]]), torch.tensor([1])).update(new, new, 0)
    assert returned.flatten().tolist() == [4, 5, 100, 7]
    assert keys.flatten().tolist() == list(range(8))
    cache.keep([1])
    assert cache.layers[0].keys.flatten().tolist() == [4, 5, 100, 7]


def slow_blocks(model: CoDALanguageModel, prompt: list[int], block_length: int) -> Tensor:
    """Blocks one after the other by the plain decode: everything behind the block is masked and stays so."""
    ids = torch.tensor([[*prompt, *[MASK] * NEW]])
    while MASK in ids[0].tolist():
        start = ids[0].tolist().index(MASK)
        stop = start + block_length
        while (ids[0, start:stop] == MASK).any():
            logits = model(ids).logits[0]
            logits[:, MASK] = -torch.inf
            places = [i for i in range(start, min(stop, ids.shape[1])) if ids[0, i] == MASK]
            log_probs = {i: logits[i - int(model.config.shift)].log_softmax(-1) for i in places}
            best = max(places, key=lambda i: float((log_probs[i].exp() * log_probs[i].clamp(min=-1e4)).sum()))
            ids[0, best] = log_probs[best].argmax()
    return ids[0]


@pytest.mark.parametrize("block_length", [1, 2, 5])
@torch.no_grad()
def test_blocks_equal_the_slow_reference(model: CoDALanguageModel, block_length: int) -> None:
    for prompt in PROMPTS:
        ours = generate(model, [prompt], block_length=block_length, seed=0).sequences[0]
        assert torch.equal(ours, slow_blocks(model, prompt, block_length))


def test_a_block_as_long_as_the_canvas_is_no_block(model: CoDALanguageModel) -> None:
    settings = {"steps": 4, "seed": 0, "max_new_tokens": 12}
    whole = generate(model, [[5, 6]], **settings).sequences
    assert torch.equal(whole, generate(model, [[5, 6]], block_length=12, **settings).sequences)
