"""Periodic sampling in a real fit: when, what is logged, and that training does not notice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from callbacks import DiffusionSampling
from callbacks.sampling import PROMPTS
from tests.callbacks.events import scalars, texts
from tests.conftest import Tiny

SAMPLES = {"prefix_0", "prefix_1", "infilling_2", "infilling_3", "unconditional_4"}
SHORT = {"max_new_tokens": 8, "exact_match_rows": 2}


def sampled(tiny: Tiny, sampling: dict[str, Any] | None = None, **options: Any) -> Trainer:
    """Train for six steps and sample."""
    return tiny.fit(DiffusionSampling(**{**SHORT, **(sampling or {})}), **{"max_steps": 6, **options})


@pytest.fixture(scope="module")
def trainer(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A fit that sampled after its steps 3 and 6, which are written as numbers 2 and 5."""
    tiny = Tiny(corpus, tmp_path_factory.mktemp("sampled"))
    settings = {"every_n_steps": 3, "at_validation": False, "history_frames": 4}
    return sampled(tiny, settings, limit_val_batches=0)


@pytest.fixture(scope="module")
def logged(trainer: Trainer) -> dict[str, dict[int, str]]:
    return texts(trainer)


def test_prompts_are_of_all_kinds() -> None:
    assert {kind for kind, _, _ in PROMPTS} == {"prefix", "infilling", "unconditional"}
    assert all(bool(suffix) == (kind == "infilling") for kind, _, suffix in PROMPTS)


def test_samples_of_all_kinds_are_logged_as_text(logged: dict[str, dict[int, str]]) -> None:
    assert {name: set(steps) for name, steps in logged.items()} == {
        f"samples/{name}": {2, 5} for name in {*SAMPLES, "denoising"}
    }


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_a_sample_stands_between_its_prompt_and_suffix(logged: dict[str, dict[int, str]], number: int) -> None:
    """As a code block of Markdown: every line indented by four spaces."""
    kind, prompt, suffix = PROMPTS[number]
    lines = logged[f"samples/{kind}_{number}"][5].split("\n")
    assert all(line.startswith("    ") for line in lines)
    sample = "\n".join(line[4:] for line in lines)
    assert sample.startswith(prompt)
    assert sample.endswith(suffix.rstrip("\n"))


def test_no_sample_has_masks_left(logged: dict[str, dict[int, str]]) -> None:
    assert not [name for name in SAMPLES if "<|mask|>" in logged[f"samples/{name}"][5]]


def test_the_history_shows_masks_becoming_text(logged: dict[str, dict[int, str]]) -> None:
    """Eight tokens in eight steps, shown after steps 1, 3, 5 and 8."""
    frames = logged["samples/denoising"][5].split("# after denoising step ")[1:]
    assert [frame.split("\n")[0].strip() for frame in frames] == [f"{step} of 8" for step in (1, 3, 5, 8)]
    assert [frame.count("░") for frame in frames] == [7, 5, 3, 0]
    assert all("def read_lines(path):" in frame for frame in frames)


def test_scores_are_logged_with_the_samples(trainer: Trainer) -> None:
    values = scalars(trainer)
    for name in ("samples/parses", "samples/infilling_exact_match"):
        assert set(values[name]) == {2, 5}
        assert all(0 <= value <= 1 for value in values[name].values())


@pytest.mark.parametrize(
    ("sampling", "options", "steps"),
    [
        ({"every_n_steps": 2, "at_validation": False}, {"val_check_interval": 3}, {1, 3, 5}),
        ({"every_n_steps": 4, "at_validation": True}, {"val_check_interval": 3}, {2, 3, 5}),
        ({"every_n_steps": 0, "at_validation": True}, {"val_check_interval": 5, "num_sanity_val_steps": 1}, {4}),
        ({"every_n_steps": 2, "at_validation": False}, {"accumulate_grad_batches": 2}, {1, 3, 5}),
        ({"every_n_steps": 0, "at_validation": False}, {"val_check_interval": 3}, set()),
    ],
    ids=["steps", "both", "validation, not the sanity check", "accumulated", "never"],
)
def test_it_samples_when_asked_to(
    tiny: Tiny, sampling: dict[str, Any], options: dict[str, Any], steps: set[int]
) -> None:
    values = scalars(sampled(tiny, sampling, **options))
    assert set(values.get("samples/parses", {})) == steps


@pytest.mark.parametrize("every", [1, 3])
def test_each_step_is_sampled_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """Also if it has several micro-batches."""
    steps: list[int] = []
    monkeypatch.setattr(DiffusionSampling, "sample", lambda self, trainer, module: steps.append(trainer.global_step))
    sampled(tiny, {"every_n_steps": every, "at_validation": False}, accumulate_grad_batches=2)
    assert steps == list(range(every, 7, every))


def state(module: torch.nn.Module) -> list[Any]:
    return [torch.get_rng_state().tolist(), [(name, child.training) for name, child in module.named_modules()]]


@pytest.mark.parametrize("training", [True, False])
def test_sampling_leaves_mode_and_randomness_as_they_were(trainer: Trainer, training: bool) -> None:
    module = trainer.lightning_module.train(training)
    before = state(module)
    DiffusionSampling(**SHORT).sample(trainer, module)  # type: ignore[arg-type]
    assert state(module) == before


def test_the_model_decodes_in_evaluation_mode(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = trainer.lightning_module.train()
    modes = []
    decode = module.backbone.diffusion_generate

    def watched(*args: Any, **options: Any) -> Any:
        modes.append(module.backbone.training)
        return decode(*args, **options)

    monkeypatch.setattr(module.backbone, "diffusion_generate", watched)
    DiffusionSampling(**SHORT).sample(trainer, module)  # type: ignore[arg-type]
    assert set(modes) == {False}


def test_training_does_not_notice(tiny: Tiny) -> None:
    def weights(*callbacks: DiffusionSampling) -> Tensor:
        torch.manual_seed(0)
        trainer = tiny.fit(*callbacks, max_steps=4, val_check_interval=2)
        return torch.cat([parameter.detach().flatten() for parameter in trainer.lightning_module.parameters()])

    assert torch.equal(weights(DiffusionSampling(every_n_steps=1, **SHORT)), weights())  # type: ignore[arg-type]


def test_a_seed_gives_the_same_samples(trainer: Trainer) -> None:
    module: Any = trainer.lightning_module

    def texts_of(seed: int) -> dict[str, str]:
        sampling = DiffusionSampling(max_new_tokens=8, temperature=5.0, top_p=None, seed=seed)
        return sampling._texts(module, trainer.datamodule.tokenizer)[0]  # type: ignore[attr-defined]

    assert texts_of(0) == texts_of(0)
    assert texts_of(0) != texts_of(1)


def test_other_loggers_get_the_scores(tiny: Tiny) -> None:
    sampled(tiny, {"every_n_steps": 3}, logger=CSVLogger(tiny.folder, name=None), limit_val_batches=0)
    assert "samples/parses" in (tiny.folder / "version_0" / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_steps": -1}, r"sampling\.every_n_steps is -1"),
        ({"alg": "greedy"}, r"alg is greedy; it must be one of origin"),
        ({"steps": 0}, r"steps is 0"),
        ({"temperature": -1.0}, r"temperature is -1"),
        ({"top_p": 1.5}, r"top_p is 1.5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_work_are_refused_at_construction(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionSampling(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 128}, r"\Asampling\.max_new_tokens is 128, [^\n]+ the model has 128; lower it\Z"),
        ({"exact_match_span": 0}, r"\Asampling\.exact_match_span is 0; [^\n]+\Z"),
        ({"exact_match_span": 31}, r"\Asampling\.exact_match_span is 31; [^\n]+ 32[^\n]+\Z"),
    ],
    ids=["canvas", "no span", "span"],
)
def test_what_does_not_fit_is_refused_before_training(tiny: Tiny, settings: dict[str, Any], message: str) -> None:
    """Not thousands of steps later, at the first sampling."""
    trainer = tiny.trainer(DiffusionSampling(**settings), max_steps=2)
    with pytest.raises(ValueError, match=message):
        trainer.fit(tiny.module(), tiny.data())
    assert trainer.global_step == 0


def test_the_longest_span_and_canvas_that_fit_are_accepted(tiny: Tiny) -> None:
    settings = {"every_n_steps": 1, "exact_match_span": 30, "exact_match_rows": 1, "max_new_tokens": 90, "steps": 2}
    assert "samples/infilling_exact_match" in scalars(sampled(tiny, settings, max_steps=1))


def test_any_method_of_the_sampler_may_be_used(tiny: Tiny) -> None:
    decoding = {"block_length": 4, "cache": "dual", "threshold": 0.5}
    trainer = sampled(tiny, {"every_n_steps": 6, "at_validation": False, "decoding": decoding}, limit_val_batches=0)
    assert set(texts(trainer)) == {f"samples/{name}" for name in {*SAMPLES, "denoising"}}


@pytest.mark.parametrize(
    ("decoding", "message"), [({"cache": "dual"}, "cache is dual"), ({"chache": "dual"}, "chache is not a setting")]
)
def test_settings_that_cannot_be_followed_are_refused_at_once(decoding: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionSampling(decoding=decoding)
