"""From records to judges: what is read off them, and the errors that name what is missing."""

from typing import Any

import pytest

from coda.evaluation.comparison import Rule
from coda.evaluation.judging import Assertions, humaneval_judge, humaneval_plus_judge, mbpp_judge, mbpp_plus_judge

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def f(x):\n",
    "canonical_solution": "    return x\n",
    "entry_point": "f",
    "test": "def check(candidate):\n    assert candidate(1) == 1\n",
}
MBPP = {
    "task_id": 2,
    "code": "def g(x): return x\ndef f(x): return g(x)",
    "test_list": ["assert f(1) == 1", "assert f(2) == 2"],
    "test_imports": ["import math"],
}
PLUS = (
    "import numpy as np\ndef assertion(out, exp, atol):\n    assert {check}\n{extra}"
    "inputs = [[1], [inf]]\n{results}for i, {loop}:\n    assertion(f(*inp), {expected}, {atol})\n"
)


def plus(check: str = "out == exp", atol: str = "0", reference: str = "") -> dict[str, Any]:
    loop = "inp in enumerate(inputs)" if reference else "(inp, exp) in enumerate(zip(inputs, results))"
    results, expected = ("", "ref_func(*inp)") if reference else ("results = [1, inf]\n", "exp")
    test = PLUS.format(check=check, atol=atol, extra=reference, loop=loop, results=results, expected=expected)
    return {"task_id": 3, "test": test, "code": MBPP["code"]}


def test_humaneval() -> None:
    judge = humaneval_judge(HUMANEVAL)
    assert judge.functions == ("f",) and judge.tests.endswith("check(f)\n")
    assert judge.prelude == "def f(x):\n    return x\n"


def test_infilling_puts_the_suffix_in_place() -> None:
    judge = humaneval_judge({**HUMANEVAL, "canonical_solution": "    y = x\n", "suffix": "    return y\n"})
    assert judge.prelude == "def f(x):\n    y = x\n    return y\n"


def test_mbpp_calls_what_its_asserts_name() -> None:
    judge = mbpp_judge(MBPP)
    assert judge == Assertions("assert f(1) == 1\nassert f(2) == 2", ("f",), str(MBPP["code"]), "import math")
    assert mbpp_judge({**MBPP, "test_setup_code": "class N: pass"}).setup == "import math\nclass N: pass"
    named_like_a_builtin = mbpp_judge({**MBPP, "code": "def sum(x): return x", "test_list": ["assert sum(1) == 1"]})
    assert named_like_a_builtin.functions == ("sum",)


@pytest.mark.parametrize(
    ("record", "rule", "tolerance"),
    [
        (plus(), Rule.EQUAL, 0.0),
        (plus(atol="0.0001"), Rule.EQUAL, 1e-4),
        (plus("set(out) == set(exp)"), Rule.AS_SET, 0.0),
        (plus("exp == (out is not None)"), Rule.NOT_NONE, 0.0),
    ],
)
def test_mbpp_plus_rules(record: dict[str, Any], rule: Rule, tolerance: float) -> None:
    judge = mbpp_plus_judge(record)
    assert (judge.entry_point, judge.rule, judge.tolerance) == ("f", rule, tolerance)
    assert (judge.inputs, judge.expected) == ("[[1], [inf]]", "[1, inf]")


def test_plus_reference() -> None:
    judge = mbpp_plus_judge(
        plus(reference="from math import floor\ndef ref_func(x):\n    for _ in (): pass\n    return x\n")
    )
    assert judge.expected is None
    assert "def ref_func" in judge.reference and "floor" in judge.reference and "assertion" not in judge.reference


@pytest.mark.parametrize("field", ["prompt", "canonical_solution", "entry_point", "test"])
def test_humaneval_missing_field(field: str) -> None:
    record = {key: value for key, value in HUMANEVAL.items() if key != field}
    with pytest.raises(ValueError, match=f"HumanEval/0: field '{field}' is missing"):
        humaneval_judge(record)


@pytest.mark.parametrize("field", ["code", "test_list"])
def test_mbpp_missing_field(field: str) -> None:
    record = {key: value for key, value in MBPP.items() if key != field}
    with pytest.raises(ValueError, match=f"task 2: field '{field}' is missing"):
        mbpp_judge(record)


@pytest.mark.parametrize(
    ("make", "record", "message"),
    [
        (humaneval_judge, {**HUMANEVAL, "test": "assert True"}, "'test' defines no function check"),
        (humaneval_judge, {**HUMANEVAL, "test": "def check(:"}, "'test' is not Python"),
        (humaneval_judge, {**HUMANEVAL, "prompt": 1}, "'prompt' is int, not text"),
        (mbpp_judge, {**MBPP, "test_list": []}, "'test_list' is empty"),
        (mbpp_judge, {**MBPP, "test_list": ["assert h(1)"]}, "calls none of the functions"),
        (mbpp_judge, {**MBPP, "test_list": "assert f(1)"}, "'test_list' is not a list of text"),
        (mbpp_judge, {}, "a task without task_id: field 'code' is missing"),
        (humaneval_plus_judge, HUMANEVAL, "'test' has no line 'inputs = '"),
        (humaneval_plus_judge, {**HUMANEVAL, "test": "inputs = []\nresults = []"}, "no loop over its inputs"),
        (
            mbpp_plus_judge,
            {**plus(), "test": plus()["test"].replace("results = ", "others = ")},
            "neither 'results = '",
        ),
        (
            mbpp_plus_judge,
            {**plus(), "test": plus()["test"].replace("inf]]", "inf")},
            "no list on its line 'inputs = '",
        ),
        (mbpp_plus_judge, MBPP, "field 'test' is missing"),
    ],
)
def test_other_formats_are_errors_that_name_the_field(make: Any, record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(record)
