"""The sandbox itself: what an honest program finds there, what is said where layers are missing, who may not start."""

import logging
import os
import tempfile
from pathlib import Path

import pytest

from coda.evaluation import places
from coda.evaluation.judging import Outputs
from coda.evaluation.sandbox import LAYERS, Sandbox, SandboxError
from coda.evaluation.verdict import Status, Verdict

COMPLETE = {"namespaces", "landlock", "seccomp"}


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox()


def answer(sandbox: Sandbox, body: str, expected: str) -> Verdict:
    """The verdict on a function with ``body`` that should return ``expected``."""
    return Outputs("f", "[[]]", f"[{expected}]").run(f"def f():\n    {body}\n", sandbox, 20.0)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("import numpy; return float(numpy.linalg.det(numpy.eye(3)))", "1.0"),
        ("import os; return sorted(set(os.environ) - {'LC_CTYPE'})", repr(sorted(places.environment()))),
        ("import sys; return sys.stdin.read()", "''"),
        ("import os, sys; return os.listdir('.')", "[]"),
        ("open('x', 'w').write('a'); return open('x').read()", "'a'"),
        ("import tempfile; return tempfile.TemporaryFile().write(b'ab')", "2"),
        ("return open('/dev/null', 'w').write('abc')", "3"),
        ("import os; return len(os.urandom(8))", "8"),
        ("import threading; t = threading.Thread(target=print); t.start(); t.join(); return t.is_alive()", "False"),
        ("return __name__ == '__main__'", "False"),
        ("return list({'b', 'a', 'd', 'c'}) == list({'b', 'a', 'd', 'c'})", "True"),
        ("return sum(i for i in range(100))", "4950"),
    ],
)
def test_honest_programs_find_what_they_need(sandbox: Sandbox, body: str, expected: str) -> None:
    assert answer(sandbox, body, expected) == Verdict(Status.PASSED)


def test_sets_have_the_same_order_in_every_run(sandbox: Sandbox) -> None:
    program = "def f():\n    return list({str(i) for i in range(99)})\n"
    child_outputs = []
    for _ in range(2):
        judge = Outputs("f", "[[]]", None, reference=program.replace("f()", "ref_func()"))
        child_outputs.append(judge._encoded(sandbox))
    assert child_outputs[0] == child_outputs[1]


def test_level_names_the_layers(sandbox: Sandbox) -> None:
    assert sandbox.level.split("+")[-1] == "rlimits"
    assert set(sandbox.level.split("+")) - {"rlimits"} == set(sandbox.layers) <= set(LAYERS)


def test_complete_sandbox_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    made = Sandbox()
    if not set(made.layers) >= COMPLETE:
        pytest.skip(f"this machine reaches only {made.level}")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_missing_layer_is_a_loud_downgrade(caplog: pytest.LogCaptureFixture) -> None:
    try:
        made = Sandbox(layers=("landlock",))
    except SandboxError:
        pytest.skip("this kernel has no Landlock")
    assert made.level == "landlock+rlimits"
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "DOWNGRADED to level landlock+rlimits: namespaces and seccomp" in record.getMessage()
    assert answer(made, "return 1", "1").passed


def test_unsandboxed_is_refused_unless_told_to(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SandboxError, match="allow_unsandboxed"):
        Sandbox(layers=())
    made = Sandbox(layers=(), allow_unsandboxed=True)
    assert made.level == "rlimits"
    assert any("UNSANDBOXED" in record.getMessage() for record in caplog.records)
    assert answer(made, "return 1", "1").passed


def test_unknown_layer_and_little_memory_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['walls'\].*namespaces"):
        Sandbox(layers=("walls",))
    with pytest.raises(ValueError, match="memory_mb=1 "):
        Sandbox(memory_mb=1)


def test_harness_failure_is_an_error_not_a_verdict(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "readable", ["/"])
    monkeypatch.setattr(sandbox, "layers", ("no such layer", "namespaces"))
    monkeypatch.setattr(sandbox, "memory", -1)
    with pytest.raises(SandboxError, match="cannot start"):
        answer(sandbox, "return 1", "1")


@pytest.mark.slow
def test_scratch_is_removed_whatever_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    inner = Path(places.scratch_folder(None))
    keep = tmp_path / "keep"
    keep.mkdir()
    (inner / "link").symlink_to(keep)
    (inner / "broken").symlink_to("nowhere")
    os.mkfifo(inner / "pipe")
    here = os.open(inner, os.O_RDONLY)
    deep = here
    for _ in range(2100):  # deeper than a path may be long, and than Python may recurse
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.fchmod(deep, 0)
    os.close(deep)
    places.remove_scratch(str(inner))
    assert list(tmp_path.iterdir()) == [keep]


def test_bubblewrap_stands_in_for_namespaces() -> None:
    made = Sandbox(layers=("bubblewrap", "landlock", "seccomp"), allow_unsandboxed=True)
    if "bubblewrap" not in made.layers:
        pytest.skip("bubblewrap is not installed or does not work here")
    assert answer(made, "import numpy; return int(numpy.arange(3).sum())", "3").passed
    assert not answer(made, "return len(open('/etc/passwd').read()) * 0", "0").passed
