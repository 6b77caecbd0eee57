"""What the task files beside this one refer to: documents of our tasks, prompts of our formats, verdicts of our judges."""

from functools import cache, partial
from typing import Any

import datasets

from coda.evaluation.judging import TIME_LIMIT
from coda.evaluation.problem import Problem
from coda.evaluation.prompts import BaseFormat, InstructFormat, PromptFormat, instruction
from coda.evaluation.sandbox import Sandbox
from coda.evaluation.tasks import TASKS


@cache
def problems(task: str, data: str | None) -> dict[str, Problem]:
    """The problems of a task, by id."""
    return {problem.task_id: problem for problem in TASKS[task].load(data)}


@cache
def sandbox() -> Sandbox:
    """One for all."""
    return Sandbox()


def load(task: str, data: str | None = None, limit: int | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """The documents of a task; ``data`` and ``limit`` come from ``--metadata``."""
    found = list(problems(task, data).values())[:limit]
    rows = [
        {"task": task, "data": data, "task_id": one.task_id, "instruction": instruction(one), "context": one.context}
        for one in found
    ]
    for row, one in zip(rows, found, strict=True):
        row["completion"] = BaseFormat().prompt(one, None).prefix  # type: ignore[arg-type]
    return {"test": datasets.Dataset.from_list(rows)}


def judged(prompt_format: PromptFormat, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """pass@1 of the first result."""
    problem = problems(doc["task"], doc["data"])[doc["task_id"]]
    program = prompt_format.program(problem, results[0])
    return {"pass@1": float(problem.judge.run(program, sandbox(), TIME_LIMIT).passed)}


instruct = partial(judged, InstructFormat())
base = partial(judged, BaseFormat())
humaneval, humaneval_plus, mbpp, mbpp_plus = (
    partial(load, name) for name in ("humaneval", "humaneval_plus", "mbpp", "mbpp_plus")
)
