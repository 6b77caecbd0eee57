"""Fixed shapes: the same tokens, and nothing for a compiler to compile again from step to step."""

from typing import Any

import pytest
import torch

from coda.model import CoDALanguageModel
from tests.model.decoding import MASK, NEW, assert_rows_are_independent, generate, padded, small_model

METHODS: list[dict[str, Any]] = [
    {},
    {"steps": 4, "temperature": 0.9, "top_p": 0.9},
    {"alg": "origin", "steps": 5},
    {"threshold": 0.3, "block_length": 4},
    {"entropy_bound": 0.5},
    {"block_length": 4, "cache": "dual", "tokens_per_step": 2},
    {"block_length": 4, "cache": "prefix"},
    {"block_length": 4, "remasking": "confidence_drop", "remasking_rate": 0.1},
    {"block_length": 4, "eos_token_id": [7, 12, 20], "pad_token_id": 0},
]
every_method = pytest.mark.parametrize("method", METHODS, ids=str)


@pytest.fixture(scope="module")
def model() -> CoDALanguageModel:
    return small_model()


@every_method
@pytest.mark.parametrize("multiple", [8, 32])
def test_fixed_shapes_change_no_token(model: CoDALanguageModel, method: dict[str, Any], multiple: int) -> None:
    inputs, mask = padded("left")
    free = generate(model, inputs, mask, seed=0, **method)
    fixed = generate(model, inputs, mask, seed=0, pad_to_multiple_of=multiple, **method)
    assert torch.equal(free.sequences, fixed.sequences)
    assert torch.equal(free.row_nfe, fixed.row_nfe)
    torch.testing.assert_close(free.log_probs, fixed.log_probs)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_blocks_shorter_than_the_window_read_no_other_row(model: CoDALanguageModel, cache: str) -> None:
    """The last row has a block of two tokens, and a window of 12 columns that reaches behind the canvas."""
    inputs = torch.tensor([[5, 8, 9, 4, 3, 2, MASK, 1], [5, MASK, MASK, 9, 4, 3, 2, 1]])
    settings = {"max_new_tokens": 0, "block_length": 12, "cache": cache, "seed": 0}
    free = generate(model, inputs, **settings).sequences
    assert torch.equal(free, generate(model, inputs, pad_to_multiple_of=2, **settings).sequences)


def test_rows_are_independent_under_fixed_shapes(model: CoDALanguageModel) -> None:
    assert_rows_are_independent(model, pad_to_multiple_of=8, block_length=4, cache="dual", temperature=0.9)


@every_method
def test_the_network_and_its_head_see_one_shape_per_kind_of_step(
    model: CoDALanguageModel, method: dict[str, Any]
) -> None:
    """One of the whole canvas, and for caches one of a block; prompts of other lengths fall into the same bucket."""
    shapes: set[tuple[str, torch.Size]] = set()
    hooks = [
        model.lm_head.register_forward_pre_hook(lambda head, args: shapes.add(("head", args[0].shape))),
        model.register_forward_pre_hook(lambda module, args: shapes.add(("model", args[0].shape))),
    ]
    for prompt in ([1, 2], [1, 2, 3, 4, 5], [3]):
        generate(model, [prompt], max_new_tokens=NEW, seed=0, pad_to_multiple_of=16, **method)
    for hook in hooks:
        hook.remove()
    kinds = {"dual": 2, "prefix": 1}.get(method.get("cache", "none"), 1)
    assert len([name for name, _ in shapes if name == "head"]) == 1
    assert len([name for name, _ in shapes if name == "model"]) <= kinds
