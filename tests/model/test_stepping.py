"""A decoder whose steps the caller takes: which rows run, what is final, and rows that are given up."""

from typing import Any

import pytest
import torch

from coda.model import CoDALanguageModel
from tests.model.decoding import NEW, PROMPTS, SEEDS, generate, padded, small_model

METHODS: list[dict[str, Any]] = [
    {},
    {"threshold": 0.3, "block_length": 3, "cache": "prefix"},
    {"steps": 5, "remasking": "remdm", "remasking_rate": 0.3},
    {"block_length": 4, "remasking": "confidence_drop", "remasking_rate": 0.1},
    {"pad_to_multiple_of": 16, "block_length": 4},
]
every_method = pytest.mark.parametrize("method", METHODS, ids=str)


@pytest.fixture(scope="module")
def model() -> CoDALanguageModel:
    return small_model()


def decoder(model: CoDALanguageModel, **settings: Any) -> Any:
    inputs, mask = padded("right")
    return model.diffusion_decoder(inputs, mask, max_new_tokens=NEW, seed=SEEDS, temperature=0.9, **settings)


@every_method
@torch.no_grad()
def test_what_is_settled_never_changes(model: CoDALanguageModel, method: dict[str, Any]) -> None:
    steps = decoder(model, **method)
    told: list[list[int]] = [[] for _ in PROMPTS]
    grown = 0
    while not steps.finished:
        steps.step()
        settled = steps.settled()
        for row, (ids, count) in enumerate(zip(steps.canvas.restore()[0].tolist(), settled, strict=True)):
            content = [*ids[: len(PROMPTS[row])], *ids[-NEW:]][:count]  # moved to the left edge
            assert content[: len(told[row])] == told[row]
            grown += len(content) > len(told[row])
            told[row] = content
            assert row in steps.running or count >= len(PROMPTS[row]) + NEW
    whole = generate(model, *padded("right"), seed=SEEDS, temperature=0.9, **method).sequences.tolist()
    for row, ids in enumerate(whole):
        assert told[row] == [*ids[: len(PROMPTS[row])], *ids[-NEW:]]
    assert grown > len(PROMPTS), "nothing was settled before the end"
    assert steps.running == []


@every_method
@torch.no_grad()
def test_rows_given_up_leave_and_change_nothing_of_the_others(model: CoDALanguageModel, method: dict[str, Any]) -> None:
    whole = generate(model, *padded("right"), seed=SEEDS, temperature=0.9, **method)
    steps = decoder(model, **method)
    steps.step()
    steps.step()
    assert {0, 3} <= set(steps.running)
    steps.drop({0, 3})
    assert not {0, 3} & set(steps.running)
    before = steps.canvas.restore()[0]
    while not steps.finished:
        steps.step()
    after = steps.canvas.restore()[0]
    assert torch.equal(after[[1, 2]], whole.sequences[[1, 2]])
    assert torch.equal(after[[0, 3]], before[[0, 3]])
    assert steps.row_nfe[0] == steps.row_nfe[3] == 2
    steps.drop([1])  # finished before
    assert steps.finished
