"""The Monte Carlo bound against an exact sum over all masks."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from coda.data.tokenizer import separator_id
from coda.evaluation.held_out import measure
from coda.evaluation.likelihood import Bound, Likelihood, Row, continuation, windows_of
from coda.model import CoDAConfig, CoDALanguageModel
from tests.data.conftest import Texts
from tests.data.helpers import prepared

IDS, LENGTH, MASK = [3, 1, 4, 1, 5, 9], 6, 11
SCORED = {
    "all": ([True] * LENGTH, None),
    "prompt": ([False, False, True, True, True, True], None),
    "holes": ([False, True, False, True, False, True], None),
    "documents": ([True] * LENGTH, [0, 0, 0, 1, 1, 1]),
    "prompt in the second document": ([True, True, True, True, False, True], [4, 4, 4, 7, 7, 7]),
}  # fmt: skip


def tiny(shift: bool) -> CoDALanguageModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.5}
    tokens = {"vocab_size": 12, "mask_token_id": MASK, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    return CoDALanguageModel(CoDAConfig(**sizes, **heads, **tokens, shift=shift)).eval()


@torch.no_grad()
def exact(model: CoDALanguageModel, scored: list[bool], segments: list[int] | None) -> float:
    """Eq. 6, the integral over t done by hand: a set S of l of n tokens weighs 1 / (l * C(n, l))."""
    shift = int(model.config.shift)
    first = [i == 0 or (segments is not None and segments[i] != segments[i - 1]) for i in range(LENGTH)]
    places = [i for i in range(LENGTH) if scored[i] and not (shift and first[i])]
    total = 0.0
    for size in range(1, len(places) + 1):
        for masked in itertools.combinations(places, size):
            noisy = torch.tensor([IDS])
            noisy[0, list(masked)] = MASK
            given = None if segments is None else torch.tensor([segments])
            log_probs = model(noisy, segment_ids=given).logits.double().log_softmax(-1)
            nll = -sum(float(log_probs[0, i - shift, IDS[i]]) for i in masked)
            total += nll / (size * math.comb(len(places), size))
    return total


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("case", SCORED)
def test_the_estimate_agrees_with_the_sum_over_all_masks(shift: bool, case: str) -> None:
    model, (scored, segments) = tiny(shift), SCORED[case]
    (bound,) = Likelihood(model, samples=4096, batch_size=512).bounds([Row(IDS, scored, segments)])
    truth = exact(model, scored, segments)
    assert abs(bound.nats - truth) < 4 * bound.standard_error
    assert bound.standard_error < 0.01 * truth


@pytest.mark.parametrize("case", ["all", "documents"])
def test_the_standard_error_is_the_spread_of_estimates(case: str) -> None:
    model = tiny(shift=True)
    bounds = Likelihood(model, samples=8, batch_size=512).bounds([Row(IDS, *SCORED[case])] * 400)
    values = torch.tensor([bound.nats for bound in bounds])
    claimed = torch.tensor([bound.variance for bound in bounds]).mean().sqrt()
    assert float(values.std() / claimed) == pytest.approx(1, abs=0.15)
    truth = exact(model, *SCORED[case])
    assert abs(float(values.mean()) - truth) < 4 * float(claimed) / 20


def test_batches_change_nothing_and_rows_of_other_lengths_stay_out_of_each_other() -> None:
    model = tiny(shift=True)
    rows = [
        Row(IDS, [True] * LENGTH),
        Row([3, 1], [True, True]),
        Row(IDS, *SCORED["documents"]),
        Row([7] * 9, [True] * 9),
    ]
    alone = [Likelihood(model, samples=4, batch_size=1).bounds(rows)[number].nats for number in range(4)]
    together = [bound.nats for bound in Likelihood(model, samples=4, batch_size=64).bounds(rows)]
    assert together == pytest.approx(alone, rel=1e-5)
    assert [bound.tokens for bound in Likelihood(model, samples=2).bounds(rows)] == [5, 1, 4, 8]


def test_a_seed_repeats_the_estimate() -> None:
    model, rows = tiny(shift=True), [Row(IDS, [True] * LENGTH)]
    first, again, other = (Likelihood(model, samples=4, seed=seed).bounds(rows)[0].nats for seed in (0, 0, 1))
    assert first == again != other


def test_one_token_needs_one_mask_and_has_no_error() -> None:
    model = tiny(shift=True)
    (bound,) = Likelihood(model, samples=2).bounds([Row([3, 1, 4], [False, True, False])])
    log_probs = model(torch.tensor([[3, MASK, 4]])).logits.detach().log_softmax(-1)
    assert bound.nats == pytest.approx(-float(log_probs[0, 0, 1]), rel=1e-5)
    assert bound.standard_error == 0


def test_under_shift_a_first_token_alone_cannot_be_scored() -> None:
    assert Likelihood(tiny(shift=True), samples=2).bounds([Row([3], [True])]) == [Bound(0.0, 0.0, 0)]


def test_bounds_add_up_with_independent_noise() -> None:
    total = Bound.total([Bound(2.0, 0.5, 3), Bound(4.0, 0.75, 1)])
    assert total == Bound(6.0, 1.25, 4)
    assert (total.per_token, total.perplexity) == (1.5, math.exp(1.5))
    assert total.standard_error == pytest.approx(math.sqrt(1.25))


@pytest.mark.parametrize("length", [2, 3, 7, 50])
@pytest.mark.parametrize("context", [1, 2, 6])
def test_windows_score_each_token_once_given_what_precedes_it(length: int, context: int) -> None:
    document = list(range(100, 120))
    if context >= length:
        with pytest.raises(ValueError, match=f"likelihood context is {context}"):
            list(windows_of(document, 1, length, context))
        return
    rows = list(windows_of(document, 1, length, context))
    assert [id_ for row in rows for id_, scored in zip(row.ids, row.scored, strict=True) if scored] == document
    assert all(len(row.ids) <= length and not row.scored[0] for row in rows)
    for row in rows[1:]:
        assert row.scored.index(True) >= min(context, length - 1)
        assert row.ids == list(range(row.ids[0], row.ids[-1] + 1)) or row.ids[0] == 1


def test_windows_do_not_score_a_prompt() -> None:
    rows = list(windows_of([10, 11, 12, 13, 14], 1, 3, prompt=3))
    assert [(row.ids, row.scored) for row in rows] == [([11, 12, 13], [False, False, True]), ([13, 14], [False, True])]


def test_a_continuation_keeps_as_much_context_as_fits() -> None:
    assert continuation([5, 6, 7], [8, 9], 1, 64) == Row([5, 6, 7, 8, 9], [False] * 3 + [True] * 2)
    assert continuation([5, 6, 7], [8, 9], 1, 4).ids == [6, 7, 8, 9]
    assert continuation([], [8], 1, 4) == Row([1, 8], [False, True])
    with pytest.raises(ValueError, match="a continuation has 4 tokens, the model 4 positions"):
        continuation([5], [8] * 4, 1, 4)


@pytest.mark.parametrize(
    ("options", "row", "message"),
    [
        ({"samples": 3}, Row([1], [True]), "likelihood samples is 3"),
        ({"samples": 0}, Row([1], [True]), "likelihood samples is 0"),
        ({"batch_size": 0}, Row([1], [True]), "batch_size is 0"),
        ({}, Row([1] * 65, [True] * 65), "row 0 has 65 tokens, the model 64"),
        ({}, Row([1, 2], [True]), r"lengths \[1, 2\]"),
    ],
    ids=["odd", "none", "batch", "long", "uneven"],
)
def test_what_cannot_be_estimated_is_an_error(options: dict[str, Any], row: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Likelihood(tiny(shift=True), **options).bounds([row])


def test_a_file_and_the_corpus_prepared_from_it_have_the_same_bound(
    model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = ["def f(x):\n    return x\n", "y = 1\n"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.py").write_text(text)
    prepared([Texts(texts)], tokenizer, tmp_path / "store")
    estimator = Likelihood(model, samples=4)
    read = (
        measure(estimator, tokenizer, str(tmp_path / "0.py")),
        measure(estimator, tokenizer, str(tmp_path / "store"), "train"),
    )
    both = measure(estimator, tokenizer, str(tmp_path), limit=2)
    assert read[1]["nats_per_token"] == both["nats_per_token"]
    assert read[1]["documents"] == 2 and read[0]["documents"] == 1
    tokens = sum(len(tokenizer(text)["input_ids"]) + 1 for text in texts)
    assert both["tokens"] == tokens
    assert both["bits_per_byte"] == pytest.approx(
        both["nats_per_token"] * tokens / math.log(2) / sum(len(text) for text in texts)
    )
    assert "bits_per_byte" not in read[1]


def test_held_out_text_is_scored_from_its_first_token_to_its_end(
    model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """As in training, documents follow a separator and end with one."""
    (tmp_path / "x.txt").write_text("x = 1")
    ids = tokenizer("x = 1")["input_ids"]
    row = Row([separator_id(tokenizer), *ids, separator_id(tokenizer)], [False] + [True] * (len(ids) + 1))
    estimator = Likelihood(model, samples=4)
    bound = measure(estimator, tokenizer, str(tmp_path / "x.txt"))
    assert bound["nats_per_token"] == estimator.bounds([row])[0].per_token


def test_text_that_is_not_there_or_empty_is_an_error(
    model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="holds no token to score"):
        measure(Likelihood(model), tokenizer, str(tmp_path / "empty.txt"))
    with pytest.raises(ValueError, match="does not exist"):
        measure(Likelihood(model), tokenizer, str(tmp_path / "nothing.txt"))
