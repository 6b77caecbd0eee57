"""One problem of a benchmark: what the model is shown, and what decides whether its program is right."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from coda.evaluation.sandbox import Sandbox
    from coda.evaluation.verdict import Verdict


class Judge(Protocol):
    """Decides whether a candidate program solves a problem: `coda.evaluation.judging` has them."""

    def run(self, program: str, sandbox: "Sandbox", time_limit: float) -> "Verdict":
        """Run ``program`` in ``sandbox`` for at most ``time_limit`` seconds of wall clock; never raises for its sake."""
        ...


@dataclass(frozen=True)
class Problem:
    """A task of HumanEval, MBPP or their like, free of the format it came in.

    Args:
        task_id: its name in the benchmark, such as ``HumanEval/0``.
        prompt: what the model is shown: a function head, or the task in words.
        entry_point: the name of the function that the tests call, where the benchmark names one.
        judge: how a candidate program is judged.
        canonical: a complete program that solves it.
        context: what precedes a completion to make it a program (HumanEval: the prompt).
        extra: what only this benchmark has, such as an infilling's suffix.
    """

    task_id: str
    prompt: str
    entry_point: str | None
    judge: Judge
    canonical: str
    context: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
