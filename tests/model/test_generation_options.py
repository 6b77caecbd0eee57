"""What transformers' users expect of a ``generate``: several samples, processors, streams; and gaps of unknown length."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.generation.streamers import BaseStreamer

from coda.model import CoDALanguageModel, RowStreamers
from tests.model.decoding import MASK, NEW, PROMPTS, SEEDS, generate, padded, small_model


@pytest.fixture(scope="module")
def model() -> CoDALanguageModel:
    return small_model()


def test_several_sequences_of_a_prompt_are_the_prompt_repeated(model: CoDALanguageModel) -> None:
    inputs, mask = padded("left")
    settings = {"temperature": 1.0, "seed": 3, "steps": 4}
    several = generate(model, inputs, mask, num_return_sequences=3, **settings).sequences
    repeated = generate(model, inputs.repeat_interleave(3, 0), mask.repeat_interleave(3, 0), **settings).sequences
    assert torch.equal(several, repeated)
    assert len({tuple(row) for row in several[:3].tolist()}) == 3


def test_seeds_are_listed_per_returned_row(model: CoDALanguageModel) -> None:
    settings = {"temperature": 1.0, "num_return_sequences": 2}
    rows = generate(model, [[4, 5]], seed=[8, 8], **settings).sequences
    assert torch.equal(rows[0], rows[1])
    with pytest.raises(ValueError, match="seed lists 1 numbers for 2 prompts"):
        generate(model, [[4, 5]], seed=[8], **settings)


@pytest.mark.parametrize("alg", ["origin", "maskgit_plus", "topk_margin", "entropy"])
def test_suppressed_tokens_never_appear(model: CoDALanguageModel, alg: str) -> None:
    """Logits of -inf do not disturb the confidence of the others."""
    banned = list(range(20))
    processors = LogitsProcessorList([SuppressTokensLogitsProcessor(banned)])
    inputs, mask = padded("left")
    out = generate(model, inputs, mask, alg=alg, logits_processor=processors, temperature=1.0, seed=0)
    assert (out.sequences[:, inputs.shape[1] :] >= 20).all()
    assert out.log_probs.isfinite().all()
    assert (out.log_probs <= 0).all()


def test_processors_see_the_canvas_of_each_masked_position(model: CoDALanguageModel) -> None:
    seen: list[tuple[list[list[int]], torch.Size]] = []

    class Watching(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            seen.append((input_ids.tolist(), scores.shape))
            return scores

    plain = generate(model, [[4, 5], [6, MASK]], max_new_tokens=1, seed=0)
    ours = generate(
        model, [[4, 5], [6, MASK]], max_new_tokens=1, seed=0, logits_processor=LogitsProcessorList([Watching()])
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert seen[0] == ([[4, 5, MASK], [6, MASK, MASK], [6, MASK, MASK]], torch.Size([3, 40]))


def test_log_probs_and_evaluations_are_reported(model: CoDALanguageModel) -> None:
    """The first committed token's log-probability is the model's own, before temperature."""
    out = generate(model, [[4, 5]], seed=0, temperature=0.3)
    column = int((out.history[0][0] != MASK).nonzero()[-1])
    with torch.no_grad():
        logits = model(torch.tensor([[4, 5, *[MASK] * NEW]])).logits[0, column - 1]
    logits[MASK] = -torch.inf
    expected = logits.log_softmax(-1)[out.sequences[0, column]]
    assert float(out.log_probs[0, column]) == pytest.approx(float(expected), abs=1e-5)
    assert (out.log_probs[0, :2] == 0).all()
    assert (out.log_probs[0, 2:] < 0).all()
    assert (out.nfe, out.row_nfe.tolist(), out.tokens_per_nfe.tolist()) == (NEW, [NEW], [1.0])


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.final: list[int] = []
        self.drafts: list[list[int]] = []
        self.puts = 0
        self.ended = False

    def put_draft(self, value: Tensor) -> None:
        assert len(value) == 1
        self.drafts.append(self.final + value[0].tolist())

    def put(self, value: Tensor) -> None:
        assert len(value) == 1
        self.puts += 1
        self.final += value[0].tolist()

    def end(self) -> None:
        self.ended = True


def test_a_batch_is_streamed_row_by_row(model: CoDALanguageModel) -> None:
    streamers = [Recorder() for _ in PROMPTS]
    inputs, mask = padded("right")
    out = generate(model, inputs, mask, seed=SEEDS, block_length=4, streamer=RowStreamers(streamers))
    for row, streamer in enumerate(streamers):
        assert streamer.final == out.sequences[row].tolist()
        assert streamer.drafts == [canvas[row].tolist() for canvas in out.history]
        assert streamer.ended


def test_blocks_become_final_one_by_one(model: CoDALanguageModel) -> None:
    streamer = Recorder()
    generate(model, [[4, 5]], max_new_tokens=9, block_length=3, seed=0, streamer=streamer)
    assert streamer.puts == 4  # the prompt and three blocks
    assert streamer.drafts[3][:5] == streamer.final[:5]


def test_a_streamer_that_takes_no_drafts_gets_the_text(model: CoDALanguageModel) -> None:
    class Plain(BaseStreamer):
        def __init__(self) -> None:
            self.final: list[int] = []

        def put(self, value: Tensor) -> None:
            self.final += value[0].tolist()

        def end(self) -> None:
            self.final.append(-1)

    streamer = Plain()
    out = generate(model, [[4, 5]], block_length=3, seed=0, streamer=RowStreamers([streamer]))
    assert streamer.final == [*out.sequences[0].tolist(), -1]


@pytest.mark.parametrize(
    "settings", [{}, {"steps": 3, "temperature": 0.9}, {"block_length": 2, "cache": "dual"}], ids=str
)
def test_the_length_with_the_best_mean_log_probability_is_chosen(
    model: CoDALanguageModel, settings: dict[str, Any]
) -> None:
    """Against each length alone."""
    before, behind, lengths = [5, 8], [7, 21, 3], [3, 4, 6]
    result = model.diffusion_infill([before, behind], lengths, seed=0, **settings)
    alone = []
    for seed, length in enumerate(lengths):
        prompt = [before + [MASK] * length + behind]
        out = generate(model, prompt, max_new_tokens=0, seed=seed, eos_token_id=None, **settings)
        alone.append((float(out.log_probs.sum() / length), out.sequences))
    assert result.scores.tolist() == pytest.approx([score for score, _ in alone], abs=1e-5)
    best = max(range(3), key=lambda i: alone[i][0])
    assert result.best == best
    assert torch.equal(result.sequences, alone[best][1])
    assert [gap.tolist() for gap in result.gaps] == [result.sequences[0, 2 : 2 + lengths[best]].tolist()]


def test_several_candidates_of_each_length_may_compete(model: CoDALanguageModel) -> None:
    result = model.diffusion_infill([[5], [7]], [2, 3], seed=0, temperature=1.0, num_return_sequences=4)
    assert result.lengths == [(2,)] * 4 + [(3,)] * 4
    assert len(set(result.scores.tolist())) > 2
    assert result.best == result.scores.argmax()
    assert [5, *result.gaps[0].tolist(), 7] == result.sequences[0].tolist()


def test_several_gaps_try_all_combinations(model: CoDALanguageModel) -> None:
    parts = [[5], [8, 9], []]
    result = model.diffusion_infill(parts, [1, 2], seed=0)
    assert result.lengths == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert tuple(map(len, result.gaps)) == result.lengths[result.best]
    assert [5, *result.gaps[0].tolist(), 8, 9, *result.gaps[1].tolist()] == result.sequences[0].tolist()


@pytest.mark.parametrize(
    ("parts", "lengths", "message"),
    [
        ([[5]], [2], "parts has 1 entries"),
        ([[5], [6]], [], r"lengths is \[\]"),
        ([[5], [6]], [0, 2], "each at least 1"),
    ],
)
def test_infilling_without_a_gap_or_a_length_is_an_error(
    model: CoDALanguageModel, parts: list[list[int]], lengths: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.diffusion_infill(parts, lengths)
