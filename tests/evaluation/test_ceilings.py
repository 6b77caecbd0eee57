"""Canonical solutions reach exactly the ceilings of the data; empty and wrong ones score nothing."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coda.evaluation.judging import humaneval_judge, humaneval_plus_judge, judge_all, mbpp_judge, mbpp_plus_judge
from coda.evaluation.problem import Judge
from coda.evaluation.sandbox import Sandbox

FOLDER = Path(os.environ.get("CODA_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"the benchmarks' files are not at {FOLDER}: set CODA_TEST_DATA"
)
Record = dict[str, Any]
FORMATS: dict[str, tuple[str, Callable[[Record], Judge]]] = {
    "humaneval": ("HumanEval", humaneval_judge),
    "humaneval_infilling": ("HumanEval-RandomSpanInfillingLight", humaneval_judge),
    "humaneval_plus": ("HumanEvalPlus-OriginFmt", humaneval_plus_judge),
    "mbpp": ("mbpp_sanitized", mbpp_judge),
    "mbpp_plus": ("MbppPlus-OriginFmt", mbpp_plus_judge),
}
# What no canonical program passes: HumanEval/32's check unpacks a float.
IMPOSSIBLE: dict[str, set[Any]] = {"humaneval_plus": {"HumanEval/32"}}
# Counts to ten thousand million, in 20 s on a fast machine and in 60 on a slow one: it may pass and may not.
OPEN: dict[str, set[Any]] = {"mbpp_plus": {599}}
SIZES = {"humaneval": 164, "humaneval_infilling": 164, "humaneval_plus": 164, "mbpp": 427, "mbpp_plus": 378}


def records(task: str) -> list[Record]:
    with gzip.open(FOLDER / f"{FORMATS[task][0]}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def canonical(record: Record) -> str:
    if "code" in record:
        return str(record["code"])
    return str(record["prompt"] + record["canonical_solution"] + record.get("suffix", ""))


def failed(task: str, programs: Callable[[Record], str], patience: float = 0.0) -> set[Any]:
    """The tasks whose program does not pass, those that ran out of time once more alone, for ``patience`` seconds."""
    rows = records(task)
    pairs = [(FORMATS[task][1](row), programs(row)) for row in rows]
    sandbox = Sandbox()
    verdicts = list(judge_all(pairs, sandbox, 20.0))
    for i, (judge, program) in enumerate(pairs):
        if patience and verdicts[i].status == "timed_out":
            verdicts[i] = judge.run(program, sandbox, patience)
    return {row["task_id"] for row, verdict in zip(rows, verdicts, strict=True) if not verdict.passed}


@pytest.mark.slow
@pytest.mark.parametrize("task", FORMATS)
def test_canonical_solutions_reach_the_ceiling(task: str) -> None:
    """On a busy machine too, where a right program may need its 20 s once more, alone."""
    assert len(records(task)) == SIZES[task]
    assert failed(task, canonical, patience=22.0) - OPEN.get(task, set()) == IMPOSSIBLE.get(task, set())


@pytest.mark.slow
@pytest.mark.parametrize("task", FORMATS)
def test_empty_programs_score_nothing(task: str) -> None:
    assert len(failed(task, lambda row: "")) == SIZES[task]


ANY = "class Any:\n    def __eq__(self, other): return True\n    def __getattr__(self, name): return self\n"


def stub(record: Record, body: str) -> str:
    """A program whose function, whatever its arguments, does ``body``."""
    judge = FORMATS["mbpp" if "code" in record else "humaneval"][1]
    functions = judge(record).functions if "test_list" in record or "entry_point" in record else ()  # type: ignore[attr-defined]
    return "\n".join([ANY, *(f"def {name}(*a, **k): {body}" for name in functions)])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["humaneval_plus", "mbpp_plus"])
def test_an_object_that_equals_everything_scores_nothing(task: str) -> None:
    rows = {row["task_id"]: row for row in records(task)}
    passed = set(rows) - failed(task, lambda row: stub(row, "return Any()"))
    assert passed == set()
