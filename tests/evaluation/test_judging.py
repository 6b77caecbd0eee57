"""Judges, and many of them side by side."""

import copy
import pickle
import time
from collections.abc import Iterator
from typing import Any

import pytest

from coda.evaluation.judging import Assertions, Outputs, judge_all
from coda.evaluation.problem import Judge
from coda.evaluation.sandbox import Sandbox, SandboxError
from coda.evaluation.verdict import Status, Verdict

DOUBLE = Outputs("f", "[[1], [2.5], ['a']]", "[2, 5.0, 'aa']")
RIGHT = "def f(x): return x * 2"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox()


def test_outputs(sandbox: Sandbox) -> None:
    assert DOUBLE.run(RIGHT, sandbox) == Verdict(Status.PASSED)
    assert DOUBLE.run("def f(x): return x + x + 1", sandbox) == Verdict(Status.FAILED, "input 0: a wrong output")
    wrong = DOUBLE.run("def f(x): return 2 * x if x != 'a' else 1 / 0", sandbox)
    assert wrong == Verdict(Status.FAILED, "input 2: ZeroDivisionError: division by zero")
    assert DOUBLE.run("1 / 0", sandbox) == Verdict(Status.FAILED, "ZeroDivisionError: division by zero")
    assert DOUBLE.run("", sandbox).detail == "input 0: NameError: the program defines no f"
    assert DOUBLE.run("import os; os._exit(0)", sandbox).status is Status.CRASHED


def test_outputs_of_a_reference(sandbox: Sandbox) -> None:
    judge = Outputs("f", "[[3], [10]]", None, reference="def ref_func(n): return list(range(n))")
    assert judge.run("def f(n): return [i for i in range(n)]", sandbox).passed
    assert not judge.run("def f(n): return tuple(range(n))", sandbox).passed
    with pytest.raises(SandboxError, match="reference for f fails: ZeroDivisionError"):
        Outputs("f", "[[3]]", None, reference="def ref_func(n): return 1 / 0").run(RIGHT, sandbox)


def test_judges_can_be_copied_and_pickled(sandbox: Sandbox) -> None:
    assert DOUBLE.run(RIGHT, sandbox).passed
    for copied in (copy.deepcopy(DOUBLE), pickle.loads(pickle.dumps(DOUBLE))):
        assert copied == DOUBLE and copied.run(RIGHT, sandbox).passed


def test_large_outputs_are_compared_by_digest(sandbox: Sandbox) -> None:
    text = "def {}(n): return [(i, float(i), str(i)) for i in range(n)]"
    judge = Outputs("f", "[[400_000]]", None, reference=text.format("ref_func"))
    assert judge.run(text.format("f"), sandbox, 20.0).passed
    assert not judge.run(text.format("f").replace("float(i)", "float(i) + 1"), sandbox, 20.0).passed
    assert not judge.run(
        text.format("f").replace("(i, float(i), str(i))", "[i, float(i), str(i)]"), sandbox, 20.0
    ).passed


def test_assertions(sandbox: Sandbox) -> None:
    judge = Assertions("assert f(1) == 2, 'one'\nassert list(f([3])) == [3, 3]\nassert f('a', ) == 'aa'", ("f",))
    assert judge.run(RIGHT, sandbox) == Verdict(Status.PASSED)
    assert judge.run("def f(x): return 0", sandbox) == Verdict(Status.FAILED, "an assert failed one")
    assert judge.run("def f(x): return {}['k']", sandbox) == Verdict(Status.FAILED, "KeyError: \"'k'\"")
    assert judge.run("import os\ndef f(x): os._exit(0)", sandbox).status is Status.CRASHED


def test_assertions_with_values_that_do_not_travel(sandbox: Sandbox) -> None:
    judge = Assertions("assert f('ab')\nassert not f('c')", ("f",))
    assert judge.run("import re\ndef f(x): return re.search('b', x)", sandbox).passed
    iterated = Assertions("assert sorted(f([2, 1])) == [1, 2]\nassert next(iter(f([1]))) == 1", ("f",))
    assert iterated.run("def f(x): yield from x", sandbox).passed
    counted = Assertions("assert len(f({'a': 1})) == 1\nassert list(f({'a': 1})) == ['a']", ("f",))
    assert counted.run("def f(x): return x.keys()", sandbox).passed


def test_assertions_may_expect_errors_and_use_keywords(sandbox: Sandbox) -> None:
    tests = "try:\n    f(x=0)\nexcept ZeroDivisionError:\n    pass\nelse:\n    raise AssertionError\nassert f(x=1) == 1"
    assert Assertions(tests, ("f",)).run("def f(*, x): return 1 / x", sandbox).passed


def test_set_up_is_known_to_both_sides(sandbox: Sandbox) -> None:
    """As Mbpp/367: the tests build a tree of a class that the candidate never defines."""
    setup = "class Node:\n    def __init__(self, v, l=None):\n        self.v, self.l = v, l"
    judge = Assertions(
        "root = Node(1, Node(2))\nassert depth(root) == 2\nassert depth(None) == 0", ("depth",), setup=setup
    )
    assert judge.run("def depth(n): return 0 if n is None else 1 + depth(n.l)", sandbox).passed
    assert judge.run("class Node: pass\ndef depth(n): return 0 if n is None else 1 + depth(n.l)", sandbox).passed


def test_helpers_of_the_prompt_are_the_benchmark_s_own(sandbox: Sandbox) -> None:
    judge = Assertions("assert decode(encode(3)) == 3", ("decode",), prelude="def encode(x): return x + 1")
    assert judge.run("def decode(x): return x - 1", sandbox).passed
    assert not judge.run("def encode(x): return 3\ndef decode(x): return x", sandbox).passed


def test_long_calls_hit_the_limit(sandbox: Sandbox) -> None:
    judge = Assertions("assert f(1) == 2", ("f",))
    for program in ("import time\ndef f(x): time.sleep(60)", "while True: pass"):
        start = time.monotonic()
        assert judge.run(program, sandbox, 0.5).status is Status.TIMED_OUT
        assert time.monotonic() - start < 10


def test_order_is_kept_and_pairs_are_read_as_needed(sandbox: Sandbox) -> None:
    read = []

    def pairs() -> Iterator[tuple[Judge, str]]:
        for i in range(12):
            read.append(i)
            slow = "import time; time.sleep(.3)\n" if i % 4 == 0 else ""
            yield Outputs("f", "[[]]", "[1]"), f"{slow}def f(): return {i % 2}"

    verdicts = judge_all(pairs(), sandbox, workers=2)
    assert next(verdicts).status is Status.FAILED
    assert len(read) < 12
    assert [verdict.passed for verdict in verdicts] == [True, False] * 5 + [True]


def test_stopping_early_ends_the_rest(sandbox: Sandbox) -> None:
    verdicts = judge_all([(DOUBLE, RIGHT)] * 50, sandbox, workers=2)
    assert next(verdicts).passed
    verdicts.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{"workers": 0}, {"time_limit": 0.0}, {"time_limit": float("nan")}])
def test_bad_options(sandbox: Sandbox, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"workers >= 1 and time_limit > 0"):
        judge_all([], sandbox, **options)
