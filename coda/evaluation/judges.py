"""Judges: what decides whether a program solves a problem. None believes what the program's own process says of itself."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from coda.evaluation.child import Child
from coda.evaluation.comparison import ALTERNATIVES, Rule, matches
from coda.evaluation.inside import wire
from coda.evaluation.literals import parse_literal
from coda.evaluation.sandbox import Sandbox, SandboxError
from coda.evaluation.verdict import Status, Verdict

TIME_LIMIT = 20.0  # seconds of wall clock for one candidate: on a busy machine 10 fail right solutions of HumanEval+
REFERENCE_LIMIT = 120.0  # seconds for a benchmark's own reference solution
LARGEST_REFERENCE = 1 << 30
SHORT = 10_000  # bytes of a reply that only says whether something worked
DETAIL = 300
ENDED = "the process ended before it answered: an exit, a signal or no memory"


def failure(reply: bytes) -> str:
    """What a ``-`` reply of a candidate says, as one short line of printable characters."""
    try:
        kind, message = wire.decode(reply[1:])
        text = f"{kind}: {message}"
    except (ValueError, TypeError):
        text = "an error that cannot be read"
    return "".join(c if c.isprintable() else " " for c in text)[:DETAIL]


def guarded(run: Any, *arguments: Any) -> Verdict:
    """The verdict of ``run``, with the ways in which a candidate's process can be lost turned into verdicts."""
    try:
        return run(*arguments)
    except TimeoutError:
        return Verdict(Status.TIMED_OUT, "killed at its time limit")
    except (EOFError, OSError):
        return Verdict(Status.CRASHED, ENDED)
    except ValueError as error:  # a frame or a reply that no candidate sends unless it forges them
        return Verdict(Status.CRASHED, f"the process broke the protocol: {error}"[:DETAIL])


def load(child: Child, program: str, deadline: float, **request: Any) -> str:
    """Have a candidate's process run ``program``; what went wrong, or nothing."""
    child.send(json.dumps({"program": program, **request}).encode(), deadline)
    reply = child.receive(deadline, SHORT)
    return "" if reply[:1] == b"+" else failure(reply)


class Once:
    """A list that threads share and that is made once; a copy, also in another process, starts without it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value: list[bytes] | None = None

    def __reduce__(self) -> tuple[type["Once"], tuple[()]]:
        return Once, ()

    def get(self, make: Callable[[], list[bytes]]) -> list[bytes]:
        """The list, from ``make`` at the first call."""
        with self._lock:
            if self._value is None:
                self._value = make()
            return self._value


@dataclass(frozen=True)
class Assertions:
    """A benchmark's own asserts, run in a process where the candidate never runs; its functions are called remotely.

    Arguments are copied to the candidate, and results back: asserts that pass functions, or that look at what became of
    their arguments, do not work. HumanEval and MBPP have none.

    Args:
        tests: the asserts, as Python.
        functions: the candidate's functions that they call.
        prelude: a trusted solution, for whatever else the tests name (HumanEval/38 calls a helper of its prompt).
        setup: what runs after the candidate and before the tests, on both sides (MBPP's ``test_setup_code``).
    """

    tests: str
    functions: tuple[str, ...]
    prelude: str = ""
    setup: str = ""

    def run(self, program: str, sandbox: Sandbox, time_limit: float = TIME_LIMIT) -> Verdict:
        """The verdict on ``program``; raises `SandboxError` where the harness itself fails."""
        with ExitStack() as stack:
            candidate = stack.enter_context(sandbox.launch("candidate", time_limit))
            tester = stack.enter_context(sandbox.launch("tester", time_limit, peer=candidate))
            sandbox.wait(candidate, tester)
            return guarded(self._run, program, candidate, tester, time.monotonic() + time_limit)

    def _run(self, program: str, candidate: Child, tester: Child, deadline: float) -> Verdict:
        if wrong := load(candidate, f"{program}\n\n{self.setup}" if self.setup else program, deadline):
            return Verdict(Status.FAILED, wrong)
        request = {"prelude": self.prelude, "setup": self.setup, "tests": self.tests, "functions": self.functions}
        tester.send(json.dumps(request).encode(), deadline)
        outcome, detail = json.loads(tester.receive(deadline, SHORT))
        return Verdict(Status(outcome), detail)


@dataclass(frozen=True)
class Outputs:
    """EvalPlus's way: the candidate only computes; its outputs are compared here, in the harness.

    Args:
        entry_point: the function to call.
        inputs: Python text of the list of argument lists.
        expected: Python text of the list of outputs; None where ``reference`` computes them.
        tolerance: absolute; 0 compares exactly, save for floats (see `coda.evaluation.comparison`).
        rule: how to compare.
        reference: a trusted program whose ``ref_func`` gives the expected outputs; it runs once, sandboxed too.
    """

    entry_point: str
    inputs: str = field(repr=False)
    expected: str | None = field(repr=False)
    tolerance: float = 0.0
    rule: Rule = Rule.EQUAL
    reference: str = field(default="", repr=False)
    _once: Once = field(default_factory=Once, init=False, repr=False, compare=False)

    def run(self, program: str, sandbox: Sandbox, time_limit: float = TIME_LIMIT) -> Verdict:
        """The verdict on ``program``; raises `SandboxError` where the harness itself fails."""
        expected = self._encoded(sandbox)
        with sandbox.start("candidate", time_limit) as child:
            return guarded(self._run, program, child, expected, time.monotonic() + time_limit)

    def _run(self, program: str, child: Child, expected: list[bytes], deadline: float) -> Verdict:
        as_set = self.rule is Rule.AS_SET
        if wrong := load(child, program, deadline, calls=self.inputs, entry_point=self.entry_point, as_set=as_set):
            return Verdict(Status.FAILED, wrong)
        for number, right in enumerate(expected):
            try:
                reply = child.receive(deadline, 2 * len(right) + (1 << 16))
            except ValueError:
                return Verdict(Status.FAILED, f"input {number}: the output is far larger than expected")
            if not reply or reply[:1] not in b"+#":
                return Verdict(Status.FAILED, f"input {number}: {failure(reply)}")
            if not self._right(number, reply, right):
                return Verdict(Status.FAILED, f"input {number}: a wrong output")
        return Verdict(Status.PASSED)

    def _right(self, number: int, reply: bytes, right: bytes) -> bool:
        if reply == right and self.rule is Rule.EQUAL:
            return True
        if b"#" in (reply[:1], right[:1]):  # a digest equals the same digest only
            return False
        try:
            out = wire.decode(reply[1:])
        except ValueError:
            return False
        if matches(out, wire.decode(right[1:]), self.tolerance, self.rule):
            return True
        other = ALTERNATIVES.get(self.entry_point)
        return other is not None and matches(out, other(*self._arguments[number]), 0.0, self.rule)

    @cached_property
    def _arguments(self) -> list[Any]:
        return parse_literal(self.inputs)

    def _encoded(self, sandbox: Sandbox) -> list[bytes]:
        """The expected outputs as replies of a candidate, made when first needed."""
        return self._once.get(
            lambda: self._from_reference(sandbox) if self.expected is None else self._from_text(sandbox)
        )

    def _from_text(self, sandbox: Sandbox) -> list[bytes]:
        """Read by a sandboxed process, whose compiler is several times faster than `ast.literal_eval` in this one."""
        text = f"from math import inf, nan\nresults = {self.expected}\ndef ref_func(): return results"
        (reply,) = self._ask(sandbox, text, "[[]]", 1)
        return [b"+" + wire.encode(value) for value in wire.decode(reply[1:])]

    def _from_reference(self, sandbox: Sandbox) -> list[bytes]:
        return self._ask(sandbox, self.reference, self.inputs, len(self._arguments))

    def _ask(self, sandbox: Sandbox, program: str, calls: str, count: int) -> list[bytes]:
        """The replies of a trusted program's ``ref_func``."""
        deadline = time.monotonic() + REFERENCE_LIMIT
        replies: list[bytes] = []
        with sandbox.start("candidate", REFERENCE_LIMIT) as child:
            try:
                wrong = load(child, program, deadline, calls=calls, entry_point="ref_func")
                while not wrong and len(replies) < count:
                    replies.append(child.receive(deadline, LARGEST_REFERENCE))
                    wrong = failure(replies[-1]) if replies[-1][:1] == b"-" else ""
            except (OSError, EOFError) as error:
                wrong = str(error)
        if wrong:
            source = f"the benchmark's own reference for {self.entry_point}"
            raise SandboxError(f"{source} fails: {wrong}; where it lacks memory, raise memory_mb")
        return replies
