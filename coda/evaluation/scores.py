"""From verdicts to numbers: pass@k with intervals, the EvalPlus score, and how close an infilling comes to the original."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coda.evaluation.passk import bootstrap, pass_at_k
from coda.evaluation.problem import Problem
from coda.evaluation.samples import Sample
from coda.evaluation.verdict import Status, Verdict

PLUS_SETS = ("humaneval_plus", "mbpp_plus")


@dataclass(frozen=True)
class Judged:
    """A sample, the program that was made of it, and what the judge says."""

    sample: Sample
    program: str
    verdict: Verdict


def score(problems: list[Problem], judged: Sequence[Judged], ks: list[int], infilling: bool) -> dict[str, Any]:
    """The scores of one run, as JSON.

    Args:
        problems: All problems.
        judged: The samples of all problems, equally many of each.
        ks: For pass@k.
        infilling: Also compare with the text that was cut out.

    Returns:
        ``pass@k`` with ``mean``, ``low`` and ``high`` (a 95% interval over problems) for every k; counts; ``nfe``, network
        evaluations per sample; ``seconds``, wall clock per sample; and for infilling ``exact_match`` and
        ``edit_similarity``, as ``pass@k``, and ``edit_distance`` in characters per sample.
    """
    grouped = by_problem(problems, judged)
    counts = [(len(group), sum(one.verdict.passed for one in group)) for group in grouped]
    values: dict[str, list[float]] = {f"pass@{k}": [pass_at_k(n, c, k) for n, c in counts] for k in ks}
    result: dict[str, Any] = {"problems": len(problems), "samples": len(judged) // len(problems)}
    if infilling:
        closeness = [
            [_compare(one, problem) for one in group] for problem, group in zip(problems, grouped, strict=True)
        ]
        for number, name in enumerate(("exact_match", "edit_similarity")):
            values[name] = [sum(one[number] for one in group) / len(group) for group in closeness]
        distances = [one[2] for group in closeness for one in group]
        result["edit_distance"] = sum(distances) / len(distances)
    result |= {name: asdict(bootstrap(given)) for name, given in values.items()}
    outcomes = Counter(one.verdict.status for one in judged)
    result["outcomes"] = {status.value: outcomes[status] for status in Status}
    for name in ("nfe", "seconds", "tokens"):
        result[name] = sum(getattr(one.sample, name) for one in judged) / len(judged)
    return result


def by_problem(problems: list[Problem], judged: Sequence[Judged]) -> list[list[Judged]]:
    """The samples of each problem."""
    groups: dict[str, list[Judged]] = {problem.task_id: [] for problem in problems}
    for one in judged:
        groups[one.sample.task_id].append(one)
    return list(groups.values())


def evalplus(results: dict[str, dict[str, Any]]) -> float | None:
    """The EvalPlus score as the report's table 4 has it, the mean pass@1 of the two plus sets; None if one is missing."""
    means = [results[name]["pass@1"]["mean"] for name in PLUS_SETS if "pass@1" in results.get(name, {})]
    return sum(means) / len(means) if len(means) == len(PLUS_SETS) else None


def edit_distance(left: str, right: str) -> int:
    """Least number of characters to insert, delete or replace (Levenshtein), bit-parallel over ``left``.

    Myers 1999 in the form of Hyyrö 2003: one row of the table is a pair of integers, whose bits say where it rises and
    falls.
    """
    if not left or not right:
        return max(len(left), len(right))
    full, last = (1 << len(left)) - 1, 1 << (len(left) - 1)
    places: dict[str, int] = {}
    for index, character in enumerate(left):
        places[character] = places.get(character, 0) | 1 << index
    rises, falls, distance = full, 0, len(left)
    for character in right:
        match = places.get(character, 0)
        diagonal = (((match & rises) + rises) ^ rises) | match | falls
        right_rises, right_falls = falls | ~(diagonal | rises) & full, diagonal & rises
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises, right_falls = right_rises << 1 | 1, right_falls << 1
        rises = (right_falls | ~(diagonal | right_rises)) & full
        falls = right_rises & diagonal & full
    return distance


def _compare(one: Judged, problem: Problem) -> tuple[float, float, float]:
    """Exact match, edit similarity and edit distance of an infilling."""
    written, truth = one.sample.completion, problem.extra["middle"]
    distance = edit_distance(written, truth)
    return float(written == truth), 1.0 - distance / max(len(written), len(truth), 1), float(distance)
