"""Benchmarks become problems; files that are something else are told apart."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from coda.evaluation.problem import Problem
from coda.evaluation.tasks import TASKS, BenchmarkDataset, called_function, find_tasks
from tests.evaluation.conftest import BODIES, HEADS, SHARED, humaneval, infilling, mbpp, needs_shared_data, write_gz

SIZES = {"humaneval": 164, "humaneval_plus": 164, "mbpp": 427, "mbpp_plus": 378, "humaneval_infilling": 164}


def loaded(folder: Path, task: str, *records: Any, **options: Any) -> list[Problem]:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
    return TASKS[task].load(str(folder), **options)


@needs_shared_data
@pytest.mark.parametrize(("task", "size"), SIZES.items())
def test_the_real_files_load_whole(task: str, size: int) -> None:
    problems = TASKS[task].load(str(SHARED))
    assert len({problem.task_id for problem in problems}) == size
    assert all(re.search(rf"def {problem.entry_point} ?\(", problem.canonical) for problem in problems)


@pytest.mark.parametrize("task", SIZES)
def test_every_task_reads_its_file_of_a_folder(benchmarks_folder: Path, task: str) -> None:
    problems = TASKS[task].load(str(benchmarks_folder))
    assert [problem.entry_point for problem in problems] == ["add", "double"]


def test_a_headed_problem_has_its_head_as_context(tmp_path: Path) -> None:
    (problem,) = loaded(tmp_path, "humaneval", humaneval(0, "add"))
    assert problem.prompt == problem.context == humaneval(0, "add")["prompt"]
    assert problem.canonical == problem.prompt + BODIES["add"]


def test_a_worded_problem_has_its_tests_and_no_context(tmp_path: Path) -> None:
    (problem,) = loaded(tmp_path, "mbpp", mbpp(7, "add"))
    assert (problem.task_id, problem.prompt, problem.context) == ("Mbpp/7", "Write add.", "")
    assert problem.extra["tests"] == mbpp(7, "add")["test_list"]


def test_a_gap_has_what_stands_around_it(tmp_path: Path) -> None:
    (problem,) = loaded(tmp_path, "humaneval_infilling", infilling(0, "add"))
    assert (problem.extra["suffix"], problem.extra["middle"]) == ("\n", " a + b")
    assert problem.canonical.endswith("    return a + b\n")


def test_plain_and_compressed_files_are_the_same(tmp_path: Path) -> None:
    plain = loaded(tmp_path, "humaneval", humaneval(0, "add"))
    (tmp_path / "humaneval.jsonl").unlink()
    write_gz(tmp_path / "humaneval.jsonl.gz", [humaneval(0, "add")])
    assert TASKS["humaneval"].load(str(tmp_path))[0].canonical == plain[0].canonical


def test_the_first_problems_are_taken_under_a_limit(tmp_path: Path) -> None:
    problems = loaded(tmp_path, "humaneval", humaneval(0, "add"), humaneval(1, "double"), limit=1)
    assert [problem.task_id for problem in problems] == ["HumanEval/0"]


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_of_no_problem_is_an_error(tmp_path: Path, limit: int) -> None:
    with pytest.raises(ValueError, match=f"limit is {limit}"):
        loaded(tmp_path, "humaneval", humaneval(0, "add"), limit=limit)


@pytest.mark.parametrize(
    ("task", "make"), [("humaneval", humaneval), ("mbpp", mbpp), ("humaneval_infilling", infilling)]
)
def test_a_missing_field_is_named_with_its_line(tmp_path: Path, task: str, make: Any) -> None:
    for field in TASKS[task].fields:
        broken = {key: value for key, value in make(1, "double").items() if key != field}
        with pytest.raises(ValueError, match=rf"task {task}: [^\n]*line 2, has no field '{field}'"):
            loaded(tmp_path, task, make(0, "add"), broken)


def test_a_field_of_another_type_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1, field 'test_list' holds str, not list"):
        loaded(tmp_path, "mbpp", {**mbpp(0, "add"), "test_list": "assert True"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'task_id': 1}", r"line 2, is not JSON"),
        ("[1, 2]", r"line 2, is no object but a bare list"),
        (json.dumps(humaneval(0, "add")), r"HumanEval/0 comes twice"),
        (json.dumps(mbpp(0, "add")), r"line 2, has no field 'entry_point', only .*another benchmark"),
        (
            json.dumps({**humaneval(1, "add"), "test": "def test(): pass"}),
            r"line 2, .*'test' defines no function check",
        ),
    ],
    ids=["no JSON", "no object", "twice", "another benchmark", "another test"],
)
def test_a_line_of_something_else_is_an_error_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path, "humaneval", humaneval(0, "add"), line)


def test_a_file_cut_short_is_an_error(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(humaneval(0, "add")).encode() * 20)
    (tmp_path / "humaneval.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"task humaneval: .*cannot be read"):
        TASKS["humaneval"].load(str(tmp_path))


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no record"):
        loaded(tmp_path, "humaneval")


def test_a_folder_without_the_file_is_an_error_that_lists_its_names(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data is .* none of HumanEval\.jsonl, HumanEval\.jsonl\.gz, humaneval\.jsonl"
    ):
        TASKS["humaneval"].load(str(tmp_path))


def test_without_a_folder_the_hub_is_asked_and_its_absence_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def absent(self: BenchmarkDataset) -> None:
        asked.append((self.options["path"], self.options["name"], self.options["split"]))
        raise ValueError("no connection")

    monkeypatch.setattr(BenchmarkDataset, "_open", absent)
    for task in ("humaneval", "mbpp"):
        with pytest.raises(ValueError, match=rf"task {task}: no connection; or give data, a folder"):
            TASKS[task].load()
    assert asked == [("openai/openai_humaneval", None, "test"), ("google-research-datasets/mbpp", "sanitized", "train")]


def test_hub_records_of_all_splits_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sanitized 427 lie in four splits."""
    numbers = iter(range(100))
    monkeypatch.setattr(
        BenchmarkDataset, "records", lambda self, part: iter([(mbpp(next(numbers), "add"), lambda: "here")])
    )
    assert [problem.task_id for problem in TASKS["mbpp"].load()] == ["Mbpp/0", "Mbpp/1", "Mbpp/2", "Mbpp/3"]


def test_an_unknown_task_is_an_error_that_lists_all() -> None:
    with pytest.raises(ValueError, match=r"tasks names 'humanevil'; there are humaneval, humaneval_plus, mbpp, "):
        find_tasks(["humaneval", "humanevil"])


def test_no_task_is_an_error() -> None:
    with pytest.raises(ValueError, match="tasks is empty"):
        find_tasks([])


def test_a_task_named_twice_runs_once() -> None:
    assert [task.name for task in find_tasks(["mbpp", "humaneval", "mbpp"])] == ["mbpp", "humaneval"]


def test_the_function_that_tests_call_is_found_among_helpers() -> None:
    code = "def helper(x):\n    return x\n\n\ndef solve(x):\n    return helper(x)\n"
    assert called_function(code, ["assert solve(1) == 1"]) == "solve"
    assert called_function(code, ["assert other(1) == 1"]) is None
    assert called_function("def broken(", ["assert broken()"]) is None


def test_heads_and_bodies_of_these_tests_are_programs() -> None:
    for name, head in HEADS.items():
        compile(head + BODIES[name], name, "exec")
