"""Whole evaluations: from a model, or from solutions known to be right, to scores and files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from coda.checkpoint import RECORD, describe
from coda.evaluate import main
from coda.evaluation import results
from coda.evaluation.benchmarks import Benchmarks, Run
from coda.evaluation.prompts import BaseFormat, InfillingFormat, InstructFormat
from coda.evaluation.samples import Sample
from coda.evaluation.sandbox import Sandbox
from coda.evaluation.scores import score
from coda.model import CoDALanguageModel
from tests.evaluation.conftest import SHARED, humaneval, needs_shared_data, write_gz

EVERY = ["humaneval", "humaneval_plus", "mbpp", "mbpp_plus", "humaneval_infilling"]
RUNS = [*EVERY[:4], "humaneval_infilling/oracle", "humaneval_infilling/fixed_6"]
SHORT = {"max_new_tokens": 8, "steps": 4}


def answer(run: Run, task_id: str) -> str:
    """What a perfect model would write."""
    problem = next(problem for problem in run.problems if problem.task_id == task_id)
    if run.task.infilling:
        return problem.extra["middle"]
    if isinstance(run.prompt_format, BaseFormat) and problem.context:
        return problem.canonical.removeprefix(problem.context) + "\n\nprint(undefined)\n"
    return f"{problem.canonical}\n```\nThis passes the tests.\n"


def passed(benchmarks: Benchmarks, sandbox: Sandbox) -> dict[str, list[str]]:
    """The problems of each run that perfect answers do not solve."""
    failed = {}
    for run in benchmarks.runs:
        samples = [Sample(one.task_id, 0, 0, "", answer(run, one.task_id), 1, 0.0, 1) for one in run.problems]
        verdicts = benchmarks.judge(run, samples, sandbox, progress=False)
        failed[run.name] = [one.sample.task_id for one in verdicts if not one.verdict.passed]
        share = 1 - len(failed[run.name]) / len(run.problems)
        assert score(run.problems, verdicts, [1], run.task.infilling)["pass@1"]["mean"] == pytest.approx(share)
    return failed


def unsolved(benchmarks: Benchmarks, sandbox: Sandbox) -> dict[str, list[str]]:
    """The same, where those that were only slow, beside whatever else this machine does, are tried again by themselves."""
    failed = passed(benchmarks, sandbox)
    benchmarks.workers, benchmarks.time_limit = 1, 20.0
    tried = [run for run in benchmarks.runs if failed[run.name]]
    for run in tried:
        run.problems[:] = [problem for problem in run.problems if problem.task_id in failed[run.name]]
    benchmarks.runs = tried
    return passed(benchmarks, sandbox)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(allow_unsandboxed=True)


@pytest.mark.parametrize("prompt_format", [InstructFormat(), BaseFormat()], ids=["instruct", "base"])
def test_perfect_answers_reach_the_top_of_every_task(
    benchmarks_folder: Path, sandbox: Sandbox, prompt_format: Any
) -> None:
    benchmarks = Benchmarks(EVERY, str(benchmarks_folder), prompt_format=prompt_format)
    assert not any(passed(benchmarks, sandbox).values())


def test_empty_and_wrong_answers_score_nothing(benchmarks_folder: Path, sandbox: Sandbox) -> None:
    benchmarks = Benchmarks(EVERY, str(benchmarks_folder))
    for run in benchmarks.runs:
        for text in ("", "I cannot do that.", "    return None\n", " None", "exit()"):
            samples = [Sample(one.task_id, 0, 0, "", text, 1, 0.0, 1) for one in run.problems]
            assert not any(one.verdict.passed for one in benchmarks.judge(run, samples, sandbox, progress=False))


@pytest.mark.slow
@needs_shared_data
@pytest.mark.parametrize("prompt_format", [InstructFormat(), BaseFormat()], ids=["instruct", "base"])
def test_canonical_solutions_reach_the_ceilings(sandbox: Sandbox, prompt_format: Any) -> None:
    """Through extraction and judging: all 164, 427 and 164."""
    benchmarks = Benchmarks(
        ["humaneval", "mbpp", "humaneval_infilling"], str(SHARED), prompt_format=prompt_format, infilling_lengths=[64]
    )
    assert not any(unsolved(benchmarks, sandbox).values())


def evaluated(model: str, data: Path, output: Path, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"sampler": SHORT, "device": "cpu", "allow_unsandboxed": True, **options}
    settings.setdefault("tasks", ",".join(EVERY))
    return main(model, str(output), data=str(data), infilling_lengths=["oracle", 6], **settings)


@pytest.fixture(scope="module")
def report(
    exported: str, benchmarks_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("evaluated")
    text = output / "text.py"
    text.write_text("def f(x):\n    return x\n" * 20)
    options: dict[str, Any] = {"samples": 2, "k": [1, 2], "likelihood": str(text), "likelihood_masks": 8}
    return output, evaluated(exported, benchmarks_folder, output, **options)


def test_a_tiny_model_goes_through_every_task(report: tuple[Path, dict[str, Any]]) -> None:
    output, made = report
    assert list(made["results"]) == [*RUNS, "EvalPlus"]
    for name in RUNS:
        assert 0 <= made["results"][name]["pass@2"]["mean"] <= 1
        assert sum(made["results"][name]["outcomes"].values()) == 4
        lines = [json.loads(line) for line in (output / name / "problems.jsonl").read_text().splitlines()]
        assert len(lines) == 2
        assert all({"status", "detail", "completion", "program"} <= sample.keys() for sample in lines[0]["samples"])


def test_what_shaped_the_number_is_written_down(report: tuple[Path, dict[str, Any]], exported: str) -> None:
    output, made = report
    written = json.loads((output / "results.json").read_text())
    settings = written["settings"]
    assert settings["model"] == exported
    assert settings["weights"] == made["settings"]["weights"] and len(settings["weights"]) == 16
    assert (settings["dtype"], settings["seed"], settings["samples"]) == ("float32", 0, 2)
    assert settings["sampler"]["steps"] == 4 and settings["sampler"]["temperature"] == 0.1
    assert settings["tasks"]["humaneval"]["format"] == "InstructFormat"
    assert settings["tasks"]["humaneval_infilling/oracle"]["length"] == "oracle"
    assert {"torch", "transformers", "coda", "python"} <= written["environment"].keys()
    assert "rlimits" in written["sandbox"]
    assert written["results"] == made["results"]


def test_other_tests_of_the_same_problems_are_told_apart(tmp_path: Path) -> None:
    def content(check: str) -> str:
        write_gz(
            tmp_path / "HumanEval.jsonl.gz", [{**humaneval(0, "add"), "test": f"def check(candidate):\n    {check}\n"}]
        )
        return str(Benchmarks(["humaneval"], str(tmp_path)).describe()["tasks"]["humaneval"]["content"])

    assert content("assert candidate(1, 2) == 3") == content("assert candidate(1, 2) == 3") != content("pass")


def test_the_bound_of_a_file_is_reported_with_its_error(report: tuple[Path, dict[str, Any]]) -> None:
    bound = report[1]["likelihood"]
    assert bound["standard_error"] > 0
    assert bound["interval"][0] < bound["nats_per_token"] < bound["interval"][1]
    assert bound["bits_per_byte"] > 0


def test_the_table_comes_last(
    exported: str, benchmarks_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(exported, benchmarks_folder, tmp_path, tasks="humaneval")
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["humaneval", "pass@1", "0.0"]


def test_checkpoint_and_folder_have_the_same_fingerprint_and_samples(
    exported: str,
    model: CoDALanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    benchmarks_folder: Path,
    tmp_path: Path,
) -> None:
    weights = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    record = describe(model, tokenizer)
    for name in ("auto_map", "architectures"):  # left in the model by its export, of which a run knows nothing
        record["config"].pop(name)
    torch.save({"state_dict": weights, RECORD: record}, tmp_path / "x.ckpt")
    made = [
        evaluated(source, benchmarks_folder, tmp_path / str(number), tasks="humaneval")["settings"]["weights"]
        for number, source in enumerate([exported, str(tmp_path / "x.ckpt")])
    ]
    assert made[0] == made[1]


def test_other_weights_have_another_fingerprint(model: CoDALanguageModel) -> None:
    before = results.fingerprint(model)
    weight = model.model.norm.weight
    with torch.no_grad():
        weight[0] += 1e-3
    try:
        assert results.fingerprint(model) != before
    finally:
        with torch.no_grad():
            weight[0] -= 1e-3


def test_without_an_output_folder_the_model_names_one(
    exported: str, benchmarks_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(exported, tasks="humaneval", data=str(benchmarks_folder), sampler=SHORT, device="cpu", allow_unsandboxed=True)
    (path,) = tmp_path.glob("runs/evaluation/*/results.json")
    assert path.parent.name.endswith("-model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": SHORT | {"temperature": 0.7}}, r"holds samples with sampler .*0\.1.*, not .*0\.7"),
        ({"seed": 5}, r"holds samples with seed 0, not 5"),
        ({"dtype": "bfloat16"}, r"holds samples with dtype float32, not bfloat16"),
    ],
    ids=["sampler", "seed", "dtype"],
)
def test_samples_under_other_settings_are_not_mixed(
    exported: str, benchmarks_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    evaluated(exported, benchmarks_folder, tmp_path, tasks="humaneval")
    with pytest.raises(ValueError, match=message):
        evaluated(exported, benchmarks_folder, tmp_path, tasks="humaneval", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "humaneval,humanevil"}, r"tasks names 'humanevil'; there are humaneval"),
        ({"tasks": ","}, r"tasks is empty"),
        ({"tasks": ""}, r"nothing to evaluate"),
        ({"k": [2]}, r"k is 2, but there are 1 samples"),
        ({"samples": 0}, r"samples is 0"),
        ({"batch_size": 0}, r"batch_size is 0"),
        ({"workers": 0}, r"workers is 0"),
        ({"time_limit": 0.0}, r"time_limit is 0"),
        ({"limit": 0}, r"limit is 0"),
        ({"dtype": "int8"}, r"dtype is int8; choose float32"),
        ({"sampler": {"steps": -1}}, r"steps is -1"),
        ({"sampler": {}}, r"takes \d+ positions"),
        ({"prompt_format": InfillingFormat()}, r"prompt_format is InfillingFormat"),
        ({"likelihood": "x.py", "likelihood_masks": 3}, r"likelihood samples is 3"),
        ({"likelihood": "/nowhere.py"}, r"/nowhere\.py, which does not exist"),
        ({"tasks": "mbpp_full"}, r"holds none of mbpp_full\.jsonl"),
    ],
    ids=str,
)
def test_bad_settings_are_errors_before_any_generation(
    exported: str,
    benchmarks_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(CoDALanguageModel, "diffusion_generate", lambda *_, **__: pytest.fail("it generated"))
    with pytest.raises(ValueError, match=message):
        evaluated(exported, benchmarks_folder, tmp_path, **options)


@pytest.mark.parametrize("mask", [-1, 300, 7])
def test_a_model_without_the_tokenizer_s_mask_token_is_an_error(
    model: CoDALanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    benchmarks_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    mask: int,
) -> None:
    monkeypatch.setattr(model.config, "mask_token_id", mask)
    with pytest.raises(ValueError, match=rf"no mask token to start from: its mask_token_id is {mask} in"):
        Benchmarks(["humaneval"], str(benchmarks_folder), sampler=SHORT).check(model, tokenizer)


def test_without_a_sandbox_nothing_is_run_unless_told_to(
    benchmarks_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sandbox, "_probe", lambda self, wanted: ())
    with pytest.raises(ValueError, match="allow_unsandboxed"):
        Benchmarks(["humaneval"], str(benchmarks_folder)).sandbox()
    assert Benchmarks(["humaneval"], str(benchmarks_folder), allow_unsandboxed=True).sandbox().level == "rlimits"
