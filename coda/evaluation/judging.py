"""Judging: candidates and judges in, verdicts out, many at a time; and where the judges of each benchmark come from."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from coda.evaluation.formats import humaneval_judge, humaneval_plus_judge, mbpp_judge, mbpp_plus_judge
from coda.evaluation.judges import TIME_LIMIT, Assertions, Outputs
from coda.evaluation.problem import Judge
from coda.evaluation.sandbox import Sandbox
from coda.evaluation.verdict import Verdict

__all__ = [
    "TIME_LIMIT",
    "Assertions",
    "Outputs",
    "humaneval_judge",
    "humaneval_plus_judge",
    "judge_all",
    "mbpp_judge",
    "mbpp_plus_judge",
]


def judge_all(
    pairs: Iterable[tuple[Judge, str]], sandbox: Sandbox, time_limit: float = TIME_LIMIT, workers: int | None = None
) -> Iterator[Verdict]:
    """Judge many candidates side by side: for each (judge, program) its verdict, in the order of ``pairs``.

    ``pairs`` is read only a little ahead of what is judged. ``workers``: how many at a time, all cores by default.

    Raises:
        ValueError: ``workers`` or ``time_limit`` is not positive.
        SandboxError: the harness itself failed.
    """
    workers = workers if workers is not None else os.cpu_count() or 1
    if workers < 1 or not time_limit > 0:
        raise ValueError(
            f"judging needs workers >= 1 and time_limit > 0, not workers={workers}, time_limit={time_limit}"
        )
    return _judge_all(pairs, sandbox, time_limit, workers)


def _judge_all(
    pairs: Iterable[tuple[Judge, str]], sandbox: Sandbox, time_limit: float, workers: int
) -> Iterator[Verdict]:
    waiting: deque[Future[Verdict]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="judge")
    try:
        for judge, program in pairs:
            waiting.append(pool.submit(judge.run, program, sandbox, time_limit))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
