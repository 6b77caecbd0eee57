"""Scores and tables out of made-up verdicts."""

import random
from typing import Any

import pytest

from coda.evaluation.problem import Problem
from coda.evaluation.results import aligned, table
from coda.evaluation.samples import Sample
from coda.evaluation.scores import Judged, edit_distance, evalplus, score
from coda.evaluation.verdict import Status, Verdict


def problem(name: str, middle: str = "") -> Problem:
    return Problem(name, "", None, None, "", extra={"middle": middle})  # type: ignore[arg-type]


def judged(name: str, number: int, status: Status, completion: str = "") -> Judged:
    sample = Sample(name, number, 0, "", completion, nfe=10 * (number + 1), seconds=0.5, tokens=4)
    return Judged(sample, "", Verdict(status))


def test_pass_at_k_is_the_mean_over_problems() -> None:
    given = {"a": 4, "b": 1, "c": 0}
    samples = [
        judged(name, number, Status.PASSED if number < right else Status.FAILED)
        for name, right in given.items()
        for number in range(4)
    ]
    scores = score([problem(name) for name in given], samples, [1, 2, 4], infilling=False)
    assert scores["pass@1"]["mean"] == pytest.approx((1 + 1 / 4 + 0) / 3)
    assert scores["pass@2"]["mean"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert scores["pass@4"]["mean"] == pytest.approx(2 / 3)
    assert scores["pass@1"]["low"] <= scores["pass@1"]["mean"] <= scores["pass@1"]["high"]
    assert (scores["problems"], scores["samples"], scores["nfe"], scores["seconds"]) == (3, 4, 25, 0.5)
    assert scores["outcomes"] == {"passed": 5, "failed": 7, "timed_out": 0, "crashed": 0}


def test_only_what_passed_counts() -> None:
    samples = [judged("a", number, status) for number, status in enumerate(Status)]
    assert score([problem("a")], samples, [1], infilling=False)["pass@1"]["mean"] == 1 / len(Status)


def test_infilling_is_compared_with_what_was_cut_out() -> None:
    problems = [problem("a", "x + y"), problem("b", "return")]
    samples = [
        judged("a", 0, Status.PASSED, "x + y"),
        judged("a", 1, Status.FAILED, "x - y"),
        judged("b", 0, Status.FAILED, ""),
        judged("b", 1, Status.FAILED, "return"),
    ]
    scores = score(problems, samples, [1], infilling=True)
    assert scores["exact_match"]["mean"] == 0.5
    assert scores["edit_distance"] == (0 + 1 + 6 + 0) / 4
    assert scores["edit_similarity"]["mean"] == pytest.approx((1 + 0.8 + 0 + 1) / 4)


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("a" * 90, "b" * 90, 90)],
)
def test_edit_distances_are_those_of_the_textbook(left: str, right: str, distance: int) -> None:
    assert edit_distance(left, right) == edit_distance(right, left) == distance


def test_edit_distance_is_the_least_number_of_edits() -> None:
    """Against the table of Wagner and Fischer."""
    generator = random.Random(0)
    for _ in range(200):
        left, right = ("".join(generator.choices("abc ", k=generator.randrange(80))) for _ in range(2))
        row = list(range(len(right) + 1))
        for i, mine in enumerate(left, start=1):
            last, row = row, [i]
            for j, theirs in enumerate(right, start=1):
                row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (mine != theirs)))
        assert edit_distance(left, right) == row[-1]


def results(**means: float) -> dict[str, Any]:
    interval = {"low": 0.1, "high": 0.9}
    rest = {"problems": 164, "nfe": 768.0, "seconds": 1.25}
    return {name: {"pass@1": {"mean": mean, **interval}, **rest} for name, mean in means.items()}


def test_the_evalplus_score_is_the_mean_of_the_two_plus_sets() -> None:
    """The report's table 4: 47.6 and 63.2 make 55.4."""
    assert evalplus(results(humaneval=1.0, humaneval_plus=0.476, mbpp_plus=0.632)) == pytest.approx(0.554)


def test_one_plus_set_makes_no_evalplus_score() -> None:
    assert evalplus(results(humaneval_plus=0.476)) is None


def test_the_table_has_shares_in_percent_with_their_interval() -> None:
    printed = table({**results(humaneval=0.543), "EvalPlus": {"evalplus": 0.554}}).splitlines()
    assert printed[2].split() == ["humaneval", "pass@1", "54.3", "10.0", "-", "90.0", "164", "768", "1.25"]
    assert printed[3].split() == ["EvalPlus", "evalplus", "55.4"]


def test_columns_are_aligned() -> None:
    assert aligned([("a", "bb"), ("ccc", "d")]) == "a    bb\n---  --\nccc  d"
