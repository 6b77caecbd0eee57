"""Judging: time to judge every canonical solution of each benchmark. ``python -m benchmarks.judging [FOLDER]``

CPU time is that of this process and all the sandboxed ones: unlike wall time, it does not depend on who else is busy.

``FOLDER`` holds the benchmarks' files (``HumanEval.jsonl.gz``, ...), by default ``../shared/data`` beside the repository.
"""

import gzip
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tables import UNAVAILABLE, print_command, table
from coda.evaluation.judging import humaneval_judge, humaneval_plus_judge, judge_all, mbpp_judge, mbpp_plus_judge
from coda.evaluation.problem import Judge
from coda.evaluation.sandbox import Sandbox

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"
Record = dict[str, Any]
BENCHMARKS: dict[str, tuple[str, Callable[[Record], Judge], int]] = {
    "HumanEval": ("HumanEval", humaneval_judge, 3),
    "MBPP, sanitized": ("mbpp_sanitized", mbpp_judge, 1),
    "HumanEval+": ("HumanEvalPlus-OriginFmt", humaneval_plus_judge, 1),
    "MBPP+": ("MbppPlus-OriginFmt", mbpp_plus_judge, 1),
}


def canonical(record: Record) -> str:
    """The program that solves a problem."""
    return str(record["code"]) if "code" in record else str(record["prompt"] + record["canonical_solution"])


def cpu_seconds() -> float:
    """CPU time of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def judged(
    folder: Path, file: str, judge: Callable[[Record], Judge], sandbox: Sandbox
) -> tuple[float, float, int, int]:
    """Wall and CPU seconds from reading the file to the last verdict; how many passed; how many there are."""
    start, start_cpu = time.perf_counter(), cpu_seconds()
    with gzip.open(folder / f"{file}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    verdicts = list(judge_all([(judge(row), canonical(row)) for row in rows], sandbox))
    passed = sum(verdict.passed for verdict in verdicts)
    return time.perf_counter() - start, cpu_seconds() - start_cpu, passed, len(rows)


def main() -> None:
    """Print a table of medians."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    if not folder.is_dir():
        print(f"{folder} is not there: name the folder of the benchmarks' files", file=sys.stderr)
        raise SystemExit(UNAVAILABLE)
    sandbox = Sandbox()
    rows = []
    for name, (file, judge, repeats) in BENCHMARKS.items():
        results = [judged(folder, file, judge, sandbox) for _ in range(repeats)]
        wall, cpu, passed, total = (statistics.median(column) for column in zip(*results, strict=True))
        rows.append((name, f"{passed:.0f}/{total:.0f}", wall, cpu, cpu / 2, repeats))
    print_command(
        "judging", f"every canonical solution, sandbox level `{sandbox.level}`, two workers; medians of rounds"
    )
    print(table(["benchmark", "passed", "wall s", "CPU s", "CPU s / 2", "rounds"], rows))


if __name__ == "__main__":
    main()
