"""The scores of periodic sampling: infilling exact match and the share that parses."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from callbacks import DiffusionSampling
from callbacks.sampling import parses
from tests.callbacks.events import scalars
from tests.conftest import Tiny


@pytest.fixture(scope="module")
def fitted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Tiny(corpus, tmp_path_factory.mktemp("fitted")).fit(max_steps=1, limit_val_batches=0)


class Oracle:
    """A sampler that knows the held-out rows by heart, but gets every ``wrong_every``-th of them wrong at one token."""

    def __init__(self, trainer: Trainer, wrong_every: int | None = None) -> None:
        data: Any = trainer.datamodule
        rows = data.rows("val")
        self.mask = data.tokenizer.mask_token_id
        self.truth = torch.stack([rows[i]["input_ids"] for i in range(len(rows))])
        self.wrong_every = wrong_every
        self.canvases: list[Tensor] = []

    def __call__(self, ids: Tensor, **options: Any) -> SimpleNamespace:
        filled = ids.clone()
        if ids.shape[1] == self.truth.shape[1]:
            self.canvases.append(ids)
            for row, canvas in enumerate(ids):
                known = ((self.truth == canvas) | (canvas == self.mask)).all(dim=1).nonzero()[0, 0]
                filled[row] = self.truth[known]
                if self.wrong_every and row % self.wrong_every == 0:
                    filled[row, (canvas == self.mask).nonzero()[-1]] += 1
        return SimpleNamespace(sequences=filled.masked_fill(filled == self.mask, 5), history=(ids,))


def score(trainer: Trainer, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> float:
    module: Any = trainer.lightning_module
    monkeypatch.setattr(module.backbone, "diffusion_generate", oracle)
    return DiffusionSampling(**settings)._exact_match(trainer, module)


def test_restoring_every_span_scores_one(fitted: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert score(fitted, Oracle(fitted), monkeypatch) == 1.0


def test_one_wrong_token_makes_a_span_wrong(fitted: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert score(fitted, Oracle(fitted, wrong_every=1), monkeypatch) == 0.0


def test_the_score_is_the_share_of_restored_rows(fitted: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert score(fitted, Oracle(fitted, wrong_every=4), monkeypatch, exact_match_rows=8) == 0.75


@pytest.mark.parametrize(("rows", "span"), [(1, 4), (3, 5), (8, 1), (8, 30)])
def test_the_middle_of_the_first_held_out_rows_is_masked(
    fitted: Trainer, monkeypatch: pytest.MonkeyPatch, rows: int, span: int
) -> None:
    oracle = Oracle(fitted)
    score(fitted, oracle, monkeypatch, exact_match_rows=rows, exact_match_span=span)
    (canvas,) = oracle.canvases
    start = (32 - span) // 2
    masked = torch.zeros_like(canvas, dtype=torch.bool)
    masked[:, start : start + span] = True
    assert torch.equal(canvas, torch.where(masked, oracle.mask, oracle.truth[:rows]))


def test_no_more_rows_than_there_are(fitted: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(fitted)
    score(fitted, oracle, monkeypatch, exact_match_rows=1_000)
    assert oracle.canvases[0].shape[0] == len(oracle.truth)


def test_the_most_probable_tokens_are_taken(fitted: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the temperature of the samples that are shown."""
    seen: dict[str, Any] = {}
    oracle = Oracle(fitted)
    module: Any = fitted.lightning_module
    monkeypatch.setattr(
        module.backbone, "diffusion_generate", lambda ids, **options: (seen.update(options), oracle(ids))[1]
    )
    DiffusionSampling(temperature=0.7)._exact_match(fitted, module)
    assert (seen["temperature"], seen["max_new_tokens"]) == (0.0, 0)


def test_the_real_sampler_restores_what_the_model_knows(tiny: Tiny) -> None:
    """The model's head is rigged: whatever the input, it predicts the one token that all held-out spans consist of."""
    trainer = tiny.fit(max_steps=1, limit_val_batches=0)
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    token = 77
    row = {"input_ids": torch.full((32,), token)}
    module.backbone.lm_head.weight.data[77:79] *= 10  # far from all other tokens
    data.rows = lambda split: [row] * 3

    def hidden_of(*args: Any, **options: Any) -> SimpleNamespace:
        direction = module.backbone.lm_head.weight[token].detach()
        return SimpleNamespace(last_hidden_state=100 * direction.expand(*args[0].shape, -1))

    module.backbone.forward = hidden_of
    assert DiffusionSampling()._exact_match(trainer, module) == 1.0
    token = 78
    assert DiffusionSampling()._exact_match(trainer, module) == 0.0


@pytest.mark.parametrize(("rows", "fraction"), [(0, 0.25), (16, 0.0)], ids=["not asked for", "nothing held out"])
def test_without_rows_there_is_no_score(tiny: Tiny, rows: int, fraction: float) -> None:
    """Rather than one of zero."""
    sampling = DiffusionSampling(every_n_steps=1, max_new_tokens=4, exact_match_rows=rows)
    trainer = tiny.trainer(sampling, max_steps=1, limit_val_batches=0)
    trainer.fit(tiny.module(), tiny.data(val_fraction=fraction))
    values = scalars(trainer)
    assert "samples/parses" in values
    assert "samples/infilling_exact_match" not in values


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("x = 1\n", True),
        ("def f():\n    return 1", True),
        ("def f():\n    return 1\n    return (2 +", True),
        ("class A:\n    x = 1\n\n    def f(se", True),
        ("x = 'cut", False),
        ("def f(:\n    return 1\n", False),
        ("def f():\n    return 1 +\n    return 2\n", False),
        ("def f():\n", False),
        ("if x:\ny = 1\nz = 2", False),
        ("", False),
        (" \n\t\n", False),
        ("(\n", False),
        ("x = 1\0\n", False),
    ],
)
def test_a_sample_parses_up_to_its_last_complete_line(text: str, valid: bool) -> None:
    assert parses(text) == valid


@pytest.mark.parametrize("text", ["-" * 50_000 + "1", "(" * 5_000, "not " * 20_000 + "x", "[" * 150 + "]" * 150])
def test_no_sample_ends_the_training(text: str) -> None:
    """An untrained model repeats itself; Python's parser gives up with errors other than SyntaxError."""
    assert parses(f"x = {text}\nand a rest") in (True, False)


@pytest.mark.parametrize("text", ["x = '\\d'\n", "x = 1 is 1\n", "assert (1, 'x')\n", "x = 1if 2else 3\n"])
def test_odd_code_is_valid_without_a_warning(text: str) -> None:
    with warnings.catch_warnings(action="error"):
        assert parses(text)


def test_the_logged_share_is_that_of_the_samples(fitted: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    module, logged = fitted.lightning_module, {}
    samples = {"a": "x = 1\n", "b": "x = = 1\n", "c": "def f(", "d": "y = 2"}
    monkeypatch.setattr(DiffusionSampling, "_texts", lambda self, module, tokenizer: (samples, ""))
    monkeypatch.setattr(fitted.logger, "log_metrics", lambda metrics, step: logged.update(metrics))
    DiffusionSampling(exact_match_rows=0).sample(fitted, module)
    assert logged == {"samples/parses": 0.5}
