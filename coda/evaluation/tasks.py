"""The benchmarks: where each comes from, what its records must hold, and how a record becomes a problem."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coda.data.files import FileRecords
from coda.data.hub import HubRecords
from coda.data.sources import BadRecordError
from coda.evaluation.judging import humaneval_judge, humaneval_plus_judge, mbpp_judge, mbpp_plus_judge
from coda.evaluation.problem import Judge, Problem
from coda.files import cache_key

Record = dict[str, Any]
ENDINGS = (".jsonl", ".jsonl.gz")
MBPP = "google-research-datasets/mbpp"
INFILLING_URL = "https://github.com/openai/human-eval-infilling/raw/master/data/{}.jsonl.gz"
HEADED: dict[str, type] = {"prompt": str, "entry_point": str, "canonical_solution": str, "test": str, "task_id": str}
IN_WORDS: dict[str, type] = {"code": str, "test_list": list, "task_id": int}


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
        name: What it is called on the command line.
        source: Its dataset on the hub, or a URL of its file.
        fields: What every record must hold, and of which type.
        problem: Makes a problem of a record.
        files: Names of its file, without ending, in a folder of local data.
        config: Of the dataset on the hub.
        splits: Of it.
        infilling: Whether a gap is filled in instead of a solution written.
    """

    name: str
    source: str
    fields: dict[str, type]
    problem: Callable[[Record], Problem]
    files: tuple[str, ...]
    config: str | None = None
    splits: tuple[str, ...] = ("test",)
    infilling: bool = False

    def load(self, data: str | None = None, limit: int | None = None) -> list[Problem]:
        """Read all problems, or the first ``limit``, in the order of the benchmark.

        Args:
            data: A folder with the benchmark's file as JSONL or JSONL.gz; None takes it from where it is published.
            limit: Problems to take; None takes all.

        Raises:
            ValueError: If there is no such file, or a record is malformed or of another benchmark; the message has the
                line.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}; take at least 1 problem of a task, or null for all")
        problems = [self._problem(record, where) for record, where in self._records(data)]
        seen: set[str] = set()
        for problem in problems:
            if problem.task_id in seen:
                raise ValueError(f"task {self.name}: {problem.task_id} comes twice in {data or self.source}; keep one")
            seen.add(problem.task_id)
        if not problems:
            raise ValueError(f"task {self.name}: {data or self.source} holds no record; give the benchmark's file")
        return problems[:limit]

    def _records(self, data: str | None) -> Iterator[tuple[Any, Callable[[], str]]]:
        try:
            for item in self._read(data):
                if isinstance(item, BadRecordError):
                    raise item
                yield item
        except ValueError as error:
            way_out = "" if data else "; or give data, a folder with the file as JSONL(.gz)"
            raise ValueError(f"task {self.name}: {error}{way_out}") from error

    def _read(self, data: str | None) -> Iterator[tuple[Any, Callable[[], str]] | BadRecordError]:
        if data is not None:
            yield from BenchmarkFile([self._file(data)]).records([self._file(data)])
        elif "://" in self.source:
            yield from BenchmarkFile([self.source]).records([self.source])
        else:
            for split in self.splits:
                yield from BenchmarkDataset(self.source, self.config, split).records([0, 1])

    def _file(self, data: str) -> str:
        names = [name + ending for name in dict.fromkeys((*self.files, self.name)) for ending in ENDINGS]
        found = [Path(data) / name for name in names if (Path(data) / name).is_file()]
        if not found:
            raise ValueError(f"data is {data}, a folder that holds none of {', '.join(names)}; give one that does")
        return str(found[0])

    def _problem(self, record: Any, where: Callable[[], str]) -> Problem:
        checked = self._checked(record, where)
        try:
            problem = self.problem(checked)
        except ValueError as error:
            raise ValueError(f"task {self.name}: {where()} {error}") from error
        return replace(problem, extra={**problem.extra, "content": cache_key(checked)})

    def _checked(self, record: Any, where: Callable[[], str]) -> Record:
        if not isinstance(record, dict):
            raise ValueError(f"task {self.name}: {where()} is no object but a bare {type(record).__name__}; mend it")
        for field, kind in self.fields.items():
            if field not in record:
                raise ValueError(
                    f"task {self.name}: {where()} has no field {field!r}, only {', '.join(record)}; is this the file of "
                    "another benchmark?"
                )
            if not isinstance(record[field], kind):
                raise ValueError(
                    f"task {self.name}: {where()} field {field!r} holds {type(record[field]).__name__}, not "
                    f"{kind.__name__}; is this the file of another benchmark?"
                )
        return record


class _Benchmark:
    """Records are read as they are; a benchmark with a hole in it is another benchmark."""

    def document(self, record: Any, where: Callable[[], str]) -> Any:
        """Return the record."""
        return record


class BenchmarkFile(_Benchmark, FileRecords):
    """A benchmark's records in a JSONL(.gz) file. See the base class."""


class BenchmarkDataset(_Benchmark, HubRecords):
    """A benchmark's records on the hub. See the base class."""


def headed_problem(judge: Callable[[Record], Judge]) -> Callable[[Record], Problem]:
    """Problems that begin with a function head, such as HumanEval's."""

    def make(record: Record) -> Problem:
        return Problem(
            task_id=record["task_id"],
            prompt=record["prompt"],
            entry_point=record["entry_point"],
            judge=judge(record),
            canonical=record["prompt"] + record["canonical_solution"],
            context=record["prompt"],
        )

    return make


def worded_problem(judge: Callable[[Record], Judge]) -> Callable[[Record], Problem]:
    """Problems told in words, with tests that show how the function is called, such as MBPP's."""

    def make(record: Record) -> Problem:
        return Problem(
            task_id=f"Mbpp/{record['task_id']}",
            prompt=record["prompt"] if "prompt" in record else record["text"],
            entry_point=called_function(record["code"], record["test_list"]),
            judge=judge(record),
            canonical=record["code"],
            extra={"tests": record["test_list"]},
        )

    return make


def infilling_problem(record: Record) -> Problem:
    """A gap in a HumanEval solution (Bavarian et al., arXiv 2207.14255)."""
    return Problem(
        task_id=record["task_id"],
        prompt=record["prompt"],
        entry_point=record["entry_point"],
        judge=humaneval_judge(record),
        canonical=record["prompt"] + record["canonical_solution"] + record["suffix"],
        context=record["prompt"],
        extra={"suffix": record["suffix"], "middle": record["canonical_solution"]},
    )


def called_function(code: str, tests: list[str]) -> str | None:
    """The function of ``code`` that ``tests`` call, None if that cannot be told."""
    try:
        defined = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        used = {node.id for test in tests for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
    except (SyntaxError, ValueError):
        return None
    return next((name for name in reversed(defined) if name in used), None)


def _infilling(name: str, file: str) -> Task:
    fields = {**HEADED, "suffix": str}
    return Task(name, INFILLING_URL.format(file), fields, infilling_problem, (file,), infilling=True)


def _tasks() -> Iterator[Task]:
    """All benchmarks."""
    humaneval, plus = headed_problem(humaneval_judge), headed_problem(humaneval_plus_judge)
    yield Task("humaneval", "openai/openai_humaneval", HEADED, humaneval, ("HumanEval",))
    plus_files = ("HumanEvalPlus-OriginFmt", "HumanEvalPlus")
    yield Task("humaneval_plus", "evalplus/humanevalplus", HEADED, plus, plus_files)
    mbpp, mbpp_plus = worded_problem(mbpp_judge), worded_problem(mbpp_plus_judge)
    every = ("train", "test", "validation", "prompt")
    prompted = {**IN_WORDS, "prompt": str}
    yield Task("mbpp", MBPP, prompted, mbpp, ("mbpp_sanitized", "sanitized-mbpp"), "sanitized", every)
    yield Task("mbpp_full", MBPP, {**IN_WORDS, "text": str}, mbpp, ("mbpp_full",), "full")
    plus_files = ("MbppPlus-OriginFmt", "MbppPlus")
    yield Task("mbpp_plus", "evalplus/mbppplus", {**prompted, "test": str}, mbpp_plus, plus_files)
    yield _infilling("humaneval_infilling", "HumanEval-RandomSpanInfillingLight")
    yield _infilling("humaneval_infilling_random_span", "HumanEval-RandomSpanInfilling")
    yield _infilling("humaneval_infilling_single_line", "HumanEval-SingleLineInfilling")
    yield _infilling("humaneval_infilling_multi_line", "HumanEval-MultiLineInfilling")


TASKS = {task.name: task for task in _tasks()}


def find_tasks(names: list[str]) -> list[Task]:
    """The tasks of these names, each once.

    Raises:
        ValueError: If there is none of a name; the message lists those that there are.
    """
    for name in names:
        if name not in TASKS:
            raise ValueError(f"tasks names {name!r}; there are {', '.join(TASKS)}")
    if not names:
        raise ValueError(f"tasks is empty; name some of {', '.join(TASKS)}")
    return [TASKS[name] for name in dict.fromkeys(names)]
