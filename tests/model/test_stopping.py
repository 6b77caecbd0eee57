"""Early stop: the text up to the end is that of the whole decode, and what follows is never computed."""

from typing import Any

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from coda.model import CoDALanguageModel
from tests.model.decoding import MASK, PAD, assert_rows_are_independent, generate, small_model

NEW = 16
METHODS: list[dict[str, Any]] = [
    {},
    {"steps": 5},
    {"threshold": 0.3},
    {"alg": "origin", "steps": 6},
    {"block_length": 4},
    {"block_length": 4, "cache": "dual"},
    {"block_length": 4, "cache": "prefix", "tokens_per_step": 2},
    {"block_length": 4, "remasking": "confidence_drop", "remasking_rate": 0.1},
    {"guide": "self", "block_length": 4},
]
every_method = pytest.mark.parametrize("method", METHODS, ids=str)


@pytest.fixture(scope="module")
def model() -> CoDALanguageModel:
    return small_model()


def whole(model: CoDALanguageModel, prompts: Any, **settings: Any) -> Any:
    return generate(model, prompts, max_new_tokens=NEW, seed=0, temperature=0.8, eos_token_id=None, **settings)


def some_end(sequence: list[int]) -> int:
    """A generated token whose first appearance is near the middle."""
    return max(sequence[1:8], key=lambda token: sequence[1:].index(token))


@every_method
def test_the_text_up_to_the_end_is_that_of_the_whole_decode(model: CoDALanguageModel, method: dict[str, Any]) -> None:
    for prompt in range(1, 6):
        full = whole(model, [[prompt]], **method)
        sequence = full.sequences[0].tolist()
        end = some_end(sequence)
        stop = sequence[1:].index(end) + 2
        out = generate(
            model, [[prompt]], max_new_tokens=NEW, seed=0, temperature=0.8, eos_token_id=end, pad_token_id=PAD, **method
        )
        assert out.sequences[0, :stop].tolist() == sequence[:stop]
        assert (out.sequences[0, stop:] == PAD).all()
        assert (out.log_probs[0, stop:] == 0).all()
        assert out.nfe <= full.nfe


def test_what_follows_the_end_is_never_computed(model: CoDALanguageModel) -> None:
    """In blocks of 4 from left to right, an end in the second block leaves no work for the others."""
    for prompt in range(30):
        sequence = whole(model, [[prompt]], block_length=4).sequences[0].tolist()
        ends = [token for token in sequence[5:9] if token not in sequence[1:5]]
        if ends:
            break
    rows: list[int] = []
    hook = model.lm_head.register_forward_pre_hook(lambda head, args: rows.append(args[0].shape[0]))
    out = generate(
        model,
        [[prompt]],
        max_new_tokens=NEW,
        seed=0,
        temperature=0.8,
        eos_token_id=ends[0],
        pad_token_id=PAD,
        block_length=4,
    )
    hook.remove()
    assert out.nfe <= 8
    assert sum(rows) <= 20
    assert out.row_nfe.tolist() == [out.nfe]


def test_finished_rows_leave_the_batch(model: CoDALanguageModel) -> None:
    """The number of rows in each evaluation is the number of rows that still need it."""
    ends = whole(model, [[1], [2], [3]], block_length=4).sequences[:, 6].tolist()
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[0]))
    out = generate(
        model,
        [[1], [2], [3]],
        max_new_tokens=NEW,
        seed=0,
        temperature=0.8,
        eos_token_id=ends[:1],
        pad_token_id=PAD,
        block_length=4,
    )
    hook.remove()
    assert sizes == [sum(step < nfe for nfe in out.row_nfe.tolist()) for step in range(out.nfe)]
    assert len(set(sizes)) > 1
    torch.testing.assert_close(out.tokens_per_nfe, NEW / out.row_nfe)


@every_method
def test_rows_are_independent_when_some_stop(model: CoDALanguageModel, method: dict[str, Any]) -> None:
    assert_rows_are_independent(model, eos_token_id=[7, 12, 20, 25, 33], pad_token_id=PAD, temperature=0.9, **method)


def test_an_end_in_the_prompt_or_in_a_gap_ends_nothing(model: CoDALanguageModel) -> None:
    prompt = [5, 7, MASK, MASK, MASK, 7, 9]
    full = generate(model, [prompt], max_new_tokens=0, seed=0, eos_token_id=None)
    end = int(full.sequences[0, 2])
    again = generate(model, [prompt], max_new_tokens=0, seed=0, eos_token_id=[end, 7])
    assert torch.equal(full.sequences, again.sequences)
    assert again.nfe == full.nfe


def test_without_padding_the_end_is_repeated(model: CoDALanguageModel) -> None:
    sequence = whole(model, [[1]]).sequences[0].tolist()
    end = some_end(sequence)
    stop = sequence[1:].index(end) + 2
    out = generate(
        model, [[1]], max_new_tokens=NEW, seed=0, temperature=0.8, eos_token_id=end, pad_token_id=None
    ).sequences[0]
    assert (out[stop - 1 :] == end).all()


class Ends(StoppingCriteria):
    """Holds when the last two tokens sum to an even number, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.asked.append(input_ids[0].tolist())
        return (input_ids[:, -1] + input_ids[:, -2]) % 2 == 0


@every_method
def test_stopping_criteria_of_transformers_end_a_row(model: CoDALanguageModel, method: dict[str, Any]) -> None:
    sequence = whole(model, [[1, 2]], **method).sequences[0].tolist()
    stop = next(i + 1 for i in range(2, len(sequence)) if (sequence[i] + sequence[i - 1]) % 2 == 0)
    criteria = Ends()
    out = generate(
        model,
        [[1, 2]],
        max_new_tokens=NEW,
        seed=0,
        temperature=0.8,
        eos_token_id=None,
        pad_token_id=PAD,
        stopping_criteria=StoppingCriteriaList([criteria]),
        **method,
    )
    assert out.sequences[0, :stop].tolist() == sequence[:stop]
    assert (out.sequences[0, stop:] == PAD).all()
    assert criteria.asked == [sequence[:i] for i in range(3, stop + 1)], "each committed token once, from the left"
