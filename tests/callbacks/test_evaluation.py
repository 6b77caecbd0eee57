"""Benchmark scores in a real fit and in ``main.py test``."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from callbacks import BenchmarkEvaluation
from coda.evaluation.prompts import BaseFormat
from coda.model import CoDALanguageModel
from tests.callbacks.events import scalars
from tests.conftest import Tiny
from tests.evaluation.conftest import humaneval, infilling, write_gz

SHORT = {"max_new_tokens": 4, "steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two problems each of two tasks."""
    path = tmp_path_factory.mktemp("benchmarks")
    write_gz(path / "HumanEval.jsonl.gz", [humaneval(0, "add"), humaneval(1, "double")])
    write_gz(path / "HumanEval-RandomSpanInfillingLight.jsonl.gz", [infilling(0, "add"), infilling(1, "double")])
    return path


def evaluation(folder: Path, tasks: list[str] | None = None, **options: Any) -> BenchmarkEvaluation:
    made: dict[str, Any] = {"data": str(folder), "prompt_format": BaseFormat(), "sampler": SHORT, "limit": 1}
    return BenchmarkEvaluation(tasks or ["humaneval"], allow_unsandboxed=True, **made | options)


@pytest.mark.parametrize(
    ("settings", "options", "steps"),
    [
        ({"every_n_steps": 2, "at_validation": False}, {"limit_val_batches": 0}, {1, 3, 5}),
        ({"every_n_steps": 0}, {"val_check_interval": 3, "num_sanity_val_steps": 1}, {2, 5}),
        ({"every_n_steps": 4, "at_validation": False}, {"accumulate_grad_batches": 2}, {3}),
        ({"every_n_steps": 0, "at_validation": False}, {"val_check_interval": 3}, set()),
    ],
    ids=["steps", "validation, not the sanity check", "accumulated", "never"],
)
def test_it_evaluates_when_asked_to(
    tiny: Tiny, folder: Path, settings: dict[str, Any], options: dict[str, Any], steps: set[int]
) -> None:
    values = scalars(tiny.fit(evaluation(folder, **settings), max_steps=6, **options))
    assert set(values.get("evaluation/humaneval/pass@1", {})) == steps


def test_scores_of_all_tasks_are_logged(tiny: Tiny, folder: Path) -> None:
    callback = evaluation(folder, ["humaneval", "humaneval_infilling"], infilling_lengths=["oracle", 3])
    values = scalars(tiny.fit(callback, max_steps=2, val_check_interval=2))
    names = {name for name in values if name.startswith("evaluation/")}
    scores = ["pass@1", "exact_match", "edit_similarity", "edit_distance"]
    assert names == {
        "evaluation/humaneval/pass@1",
        *(f"evaluation/humaneval_infilling/{run}/{name}" for run in ("oracle", "fixed_3") for name in scores),
    }


def test_right_answers_are_scored_as_such(tiny: Tiny, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that writes the body of ``add``, which is right for the first of two problems."""

    def perfect(self: CoDALanguageModel, ids: Tensor, *args: Any, **options: Any) -> Any:
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        body = tokenizer("    return a + b\n", add_special_tokens=False)["input_ids"]
        written = ids.clone()
        for row in written:
            gap = (row == tokenizer.mask_token_id).nonzero().squeeze(1)
            row[gap] = torch.tensor((body + [tokenizer.eos_token_id] * 64)[: len(gap)])
        return type("Output", (), {"sequences": written, "nfe": 1})()

    trainer = tiny.trainer(
        evaluation(folder, sampler={"max_new_tokens": 40}, limit=2), max_steps=1, val_check_interval=1
    )
    monkeypatch.setattr(CoDALanguageModel, "diffusion_generate", perfect)
    trainer.fit(tiny.module(), tiny.data())
    assert scalars(trainer)["evaluation/humaneval/pass@1"] == {0: 0.5}


def test_test_scores_all_problems_and_writes_what_shaped_the_numbers(tiny: Tiny, folder: Path) -> None:
    trainer = tiny.trainer(evaluation(folder))
    trainer.test(tiny.module(), tiny.data())
    output = Path(trainer.log_dir or "") / "evaluation"
    report = json.loads((output / "results.json").read_text())
    assert report["results"]["humaneval"]["problems"] == 2
    assert report["settings"]["tasks"]["humaneval"]["format"] == "BaseFormat"
    assert {"weights", "precision", "checkpoint", "sampler", "seed"} <= report["settings"].keys()
    assert "rlimits" in report["sandbox"]
    assert len((output / "humaneval" / "problems.jsonl").read_text().splitlines()) == 2
    assert scalars(trainer)["evaluation/humaneval/pass@1"].keys() == {0}


def test_training_does_not_notice(tiny: Tiny, folder: Path) -> None:
    def weights(*callbacks: BenchmarkEvaluation) -> Tensor:
        torch.manual_seed(0)
        trainer = tiny.fit(*callbacks, max_steps=4, val_check_interval=2)
        assert trainer.lightning_module.training
        return torch.cat([parameter.detach().flatten() for parameter in trainer.lightning_module.parameters()])

    assert torch.equal(weights(evaluation(folder, every_n_steps=1)), weights())


def test_without_tasks_nothing_happens(tiny: Tiny) -> None:
    values = scalars(tiny.fit(BenchmarkEvaluation(every_n_steps=1), max_steps=2, val_check_interval=1))
    assert not [name for name in values if name.startswith("evaluation/")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["humanevil"]}, r"evaluation: tasks names 'humanevil'"),
        ({"k": [3]}, r"evaluation: k is 3, but there are 1 samples"),
        ({"limit": 0}, r"evaluation: limit is 0"),
        ({"sampler": {"max_new_tokens": 500}}, r"evaluation: HumanEval/0 takes \d+ positions .* the model has 128"),
        ({"prompt_format": None}, r"evaluation: prompt_format is InstructFormat, .* no chat template"),
        ({"data": "/nowhere"}, r"evaluation: task humaneval: data is /nowhere"),
    ],
    ids=["task", "k", "limit", "canvas", "chat", "data"],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    tiny: Tiny, folder: Path, options: dict[str, Any], message: str
) -> None:
    trainer: Trainer = tiny.trainer(evaluation(folder, **options), max_steps=2)
    with pytest.raises(ValueError, match=message):
        trainer.fit(tiny.module(), tiny.data())
    assert trainer.global_step == 0


def test_a_negative_interval_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"evaluation\.every_n_steps is -1"):
        BenchmarkEvaluation(every_n_steps=-1)
