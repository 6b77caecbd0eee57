"""What the sampler promises for every algorithm: independent rows, a schedule for each, given tokens kept."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from coda.model import CoDAGenerationOutput, CoDALanguageModel
from coda.model import prediction_coda as module
from tests.model.decoding import MASK, NEW, PROMPTS, assert_rows_are_independent, generate, padded, small_model

ALGORITHMS = ["origin", "maskgit_plus", "topk_margin", "entropy"]
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 1.0},
    "top_p": {"temperature": 0.7, "top_p": 0.8},
    "top_k": {"temperature": 1.0, "top_k": 3},
    "alg_temp": {"temperature": 0.0, "alg_temp": 0.5},
    "all": {"temperature": 0.9, "top_p": 0.9, "top_k": 10, "alg_temp": 0.3},
}
every_algorithm = pytest.mark.parametrize("alg", ALGORITHMS)
every_sampling = pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING.keys())


@pytest.fixture(scope="module")
def model() -> CoDALanguageModel:
    return small_model()


def masks_left(out: CoDAGenerationOutput, valid: Tensor) -> list[list[int]]:
    """Masked tokens of every row after every step, [steps][B]."""
    return [((canvas == MASK) & valid).sum(dim=1).tolist() for canvas in out.history or ()]


@every_algorithm
@every_sampling
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("steps", [4, None])
def test_a_row_in_a_batch_is_the_row_alone(
    model: CoDALanguageModel, alg: str, sampling: dict[str, Any], side: str, steps: int | None
) -> None:
    assert_rows_are_independent(model, side, alg=alg, steps=steps, **sampling)


@every_algorithm
@every_sampling
def test_given_tokens_stay_and_every_mask_is_filled_with_a_token(
    model: CoDALanguageModel, alg: str, sampling: dict[str, Any]
) -> None:
    inputs, mask = padded("left")
    out = generate(model, inputs, mask, alg=alg, steps=3, seed=0, **sampling)
    given = inputs != MASK
    assert out.sequences.shape == (len(PROMPTS), inputs.shape[1] + NEW)
    assert (out.sequences != MASK).all()
    for canvas in out.history:
        assert torch.equal(canvas[:, : inputs.shape[1]][given], inputs[given])


@pytest.mark.parametrize("alg", ALGORITHMS[1:])
@pytest.mark.parametrize("steps", [1, 2, 5, 7])
def test_each_row_follows_its_own_schedule(model: CoDALanguageModel, alg: str, steps: int) -> None:
    inputs, mask = padded("left")
    valid = torch.nn.functional.pad(mask.bool(), (0, NEW), value=True)
    out = generate(model, inputs, mask, alg=alg, steps=steps, seed=0)
    masked = [prompt.count(MASK) + NEW for prompt in PROMPTS]
    assert out.nfe == steps
    assert masks_left(out, valid) == [[count * (steps - 1 - i) // steps for count in masked] for i in range(steps)]


@pytest.mark.parametrize("alg", ALGORITHMS[1:])
def test_without_steps_one_token_is_committed_per_step(model: CoDALanguageModel, alg: str) -> None:
    inputs, mask = padded("right")
    valid = torch.nn.functional.pad(mask.bool(), (0, NEW), value=True)
    out = generate(model, inputs, mask, alg=alg, seed=0)
    masked = [prompt.count(MASK) + NEW for prompt in PROMPTS]
    assert out.nfe == max(masked)
    assert masks_left(out, valid) == [[max(count - 1 - i, 0) for count in masked] for i in range(max(masked))]


@every_algorithm
def test_a_committed_token_is_never_revised(model: CoDALanguageModel, alg: str) -> None:
    history = generate(model, [PROMPTS[0]], alg=alg, steps=6, seed=3, temperature=1.0).history
    for before, after in pairwise(history):
        kept = before != MASK
        assert torch.equal(after[kept], before[kept])


@pytest.mark.parametrize("alg", ALGORITHMS[1:])
def test_more_steps_than_masks_evaluate_once_per_mask(model: CoDALanguageModel, alg: str) -> None:
    few, many = (generate(model, [[4, 5]], alg=alg, steps=steps, seed=0) for steps in (NEW, 50))
    assert few.nfe == many.nfe == NEW
    assert torch.equal(few.sequences, many.sequences)


def test_origin_commits_each_token_with_probability_one_minus_s_over_t(model: CoDALanguageModel) -> None:
    """After step i of N the share 1 - (1 - eps)(i + 1)/N of 64 x 60 masks is left, within 5 sigma of a binomial."""
    eps, steps, rows, new = 0.1, 4, 64, 60
    out = generate(model, [[1]] * rows, max_new_tokens=new, alg="origin", steps=steps, eps=eps, seed=0)
    left = [sum(counts) for counts in masks_left(out, torch.ones(rows, new + 1, dtype=torch.bool))]
    assert left[-1] == 0
    for i, count in enumerate(left[:-1]):
        share = 1 - (1 - eps) * (i + 1) / steps
        assert abs(count - rows * new * share) < 5 * (rows * new * share * (1 - share)) ** 0.5
    assert 0 < left[0] < rows * new


@every_algorithm
@pytest.mark.parametrize("sampling", [SAMPLING["temperature"], SAMPLING["alg_temp"]], ids=["temperature", "alg_temp"])
def test_the_seed_decides(model: CoDALanguageModel, alg: str, sampling: dict[str, Any]) -> None:
    def draw(seed: Any) -> list[list[list[int]]]:
        return [canvas.tolist() for canvas in generate(model, [[3, 4]] * 2, alg=alg, seed=seed, **sampling).history]

    assert draw(7) == draw(7) == draw([7, 8])
    assert draw(7) != draw(8)
    torch.manual_seed(0)
    first, second = draw(None), draw(None)
    torch.manual_seed(0)
    assert draw(None) == first != second
    assert [canvas[0] for canvas in first] != [canvas[1] for canvas in first], "rows share their noise"


def test_the_head_sees_masked_positions_only_and_few_at_once(
    model: CoDALanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGITS_CHUNK", 5)
    shapes: list[torch.Size] = []
    hook = model.lm_head.register_forward_pre_hook(lambda head, args: shapes.append(args[0].shape))
    inputs, mask = padded("left")
    generate(model, inputs, mask, seed=0)
    hook.remove()
    masked = [prompt.count(MASK) + NEW for prompt in PROMPTS]
    assert sum(shape[0] for shape in shapes) == sum(count * (count + 1) // 2 for count in masked)
    assert {len(shape) for shape in shapes} == {2}
    assert max(shape[0] for shape in shapes) == 5


@every_algorithm
def test_chunks_change_nothing(model: CoDALanguageModel, alg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, mask = padded("left")
    whole = generate(model, inputs, mask, alg=alg, seed=0, **SAMPLING["all"]).sequences
    monkeypatch.setattr(module, "LOGITS_CHUNK", 3)
    assert torch.equal(generate(model, inputs, mask, alg=alg, seed=0, **SAMPLING["all"]).sequences, whole)


class Recorder(BaseStreamer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Tensor | None]] = []

    def put_draft(self, value: Tensor) -> None:
        self.events.append(("draft", value))

    def put(self, value: Tensor) -> None:
        self.events.append(("put", value))

    def end(self) -> None:
        self.events.append(("end", None))


def test_the_streamer_gets_the_prompt_every_draft_the_result_and_the_end(model: CoDALanguageModel) -> None:
    """The prompt's first two tokens are final from the start; all else is a draft until the end."""
    streamer = Recorder()
    out = generate(model, [PROMPTS[0]], steps=4, seed=0, streamer=streamer)
    names, values = zip(*streamer.events, strict=True)
    assert list(names) == ["put"] + ["draft"] * 4 + ["put", "end"]
    assert values[0].tolist() == [PROMPTS[0][:2]]
    assert all(torch.equal(draft, canvas[:, 2:]) for draft, canvas in zip(values[1:5], out.history, strict=True))
    assert torch.equal(torch.cat([values[0], values[5]], dim=1), out.sequences)


def test_plain_ids_come_back_unless_more_is_asked_for(model: CoDALanguageModel) -> None:
    plain = model.diffusion_generate(torch.tensor([[3, 4]]), max_new_tokens=3, seed=0)
    out = generate(model, [[3, 4]], max_new_tokens=3, seed=0, output_history=False)
    assert torch.equal(plain, out.sequences)
    assert out.history is None
    assert out.nfe == 3
