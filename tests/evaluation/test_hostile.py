"""Hostile programs: none passes that should not, none harms or hangs the harness, none leaves a process or a file."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from coda.evaluation.judging import Assertions, Outputs, judge_all
from coda.evaluation.problem import Judge
from coda.evaluation.sandbox import Sandbox
from coda.evaluation.verdict import Status, Verdict
from tests.evaluation.hostile import ATTACKS, NUISANCES, RIGHT

LIMIT = 3.0
SLACK = 6.0  # to start two processes and to end them, four at a time, on a machine that others use too
CASES = [(2, 3), (-1, 1), (40, 2), (10**30, 1)]
ASSERTIONS = Assertions("\n".join(f"assert add({a}, {b}) == {a + b}" for a, b in CASES), ("add",))
OUTPUTS = Outputs("add", repr([list(case) for case in CASES]), repr([a + b for a, b in CASES]))
LEVELS = {
    "all layers": ("namespaces", "landlock", "seccomp", "user"),
    "namespaces only": ("namespaces", "user"),
    "no namespaces": ("landlock", "seccomp", "user"),
    "bubblewrap": ("bubblewrap", "landlock", "seccomp"),
}


@dataclass
class Timed:
    """A judge with a stop-watch."""

    judge: Judge
    seconds: float = field(default=0.0)

    def run(self, program: str, sandbox: Sandbox, time_limit: float) -> Verdict:
        start = time.monotonic()
        verdict = self.judge.run(program, sandbox, time_limit)
        self.seconds = time.monotonic() - start
        return verdict


@dataclass
class World:
    """What hostile programs aim at: a secret, a folder, a listening port, this process."""

    folder: Path
    port: int
    scratch: Path

    def fill(self, program: str) -> str:
        names = {
            "secret": self.folder / "secret",
            "outside": self.folder / "outside",
            "pid": os.getpid(),
            "port": self.port,
            "repository": Path(__file__).parents[2],
        }
        for name, value in names.items():
            program = program.replace(f"{{{name}}}", str(value))
        return program.replace("{{", "{").replace("}}", "}")

    def is_unharmed(self) -> bool:
        secret = self.folder / "secret"
        return (
            secret.read_text() == "the secret"
            and secret.stat().st_mode & 0o777 == 0o666
            and not list((self.folder / "outside").iterdir())
            and not list(self.scratch.iterdir())
        )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for folder in ("outside", "scratch"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder).chmod(0o777)
    (tmp_path / "secret").write_text("the secret")
    (tmp_path / "secret").chmod(0o666)  # what keeps a candidate out must be the sandbox, not the file's mode
    monkeypatch.setenv("CODA_SECRET", "the secret")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0coda-hostile-{os.getpid()}")
        abstract.listen()
        yield World(tmp_path, listening.getsockname()[1], tmp_path / "scratch")


@pytest.fixture(params=list(LEVELS))
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    wanted = LEVELS[request.param]
    made = Sandbox(memory_mb=512, layers=wanted)
    if os.geteuid() == 0 and "user" not in made.layers and "seccomp" not in made.layers:
        pytest.skip("the kernel does not count root's processes: no fork bombs as root without another layer")
    if missing := set(wanted) - set(made.layers) - {"user"}:
        pytest.skip(f"this kernel or container has no {' and '.join(sorted(missing))}")
    return made


def processes_of(harness: int) -> list[str]:
    """The ids of processes that a process's sandboxes started and that still run."""
    found, mark = [], f'"harness": {harness},'.encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if mark in path.read_bytes():
                found.append(path.parent.name)
    return found


def judge_hostile(programs: dict[str, str], judge: Judge, sandbox: Sandbox, world: World) -> dict[str, Verdict]:
    """The verdict on each program, having checked that each kept the time."""
    pairs = [(Timed(judge), world.fill(program)) for program in programs.values()]
    verdicts = dict(zip(programs, judge_all(pairs, sandbox, LIMIT, workers=4), strict=True))
    late = {
        name: timed.seconds for name, (timed, _) in zip(programs, pairs, strict=True) if timed.seconds > LIMIT + SLACK
    }
    assert not late
    return verdicts


def zombies() -> list[str]:
    """The ids of this process's children that ended and that nobody waited for."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                found.append(path.parent.name)
    return found


def check_nothing_is_left(world: World) -> None:
    assert not processes_of(os.getpid())
    assert not zombies()
    assert world.is_unharmed()


def test_there_are_enough_of_them() -> None:
    assert len(ATTACKS) > 100 and len(NUISANCES) > 10


@pytest.mark.slow
@pytest.mark.parametrize("judge", [ASSERTIONS, OUTPUTS], ids=["assertions", "outputs"])
def test_no_attack_passes(judge: Judge, sandbox: Sandbox, world: World) -> None:
    verdicts = judge_hostile(ATTACKS, judge, sandbox, world)
    assert [name for name, verdict in verdicts.items() if verdict.passed] == []
    check_nothing_is_left(world)
    assert judge.run(RIGHT, sandbox, LIMIT).passed


@pytest.mark.slow
@pytest.mark.parametrize("judge", [ASSERTIONS, OUTPUTS], ids=["assertions", "outputs"])
def test_nuisances_leave_nothing(judge: Judge, sandbox: Sandbox, world: World) -> None:
    verdicts = judge_hostile(NUISANCES, judge, sandbox, world)
    check_nothing_is_left(world)
    assert {verdicts[name].status for name in ("noise", "surrogate_noise", "closed_output", "thread")} == {
        Status.PASSED
    }


@pytest.mark.parametrize("judge", [ASSERTIONS, OUTPUTS], ids=["assertions", "outputs"])
@pytest.mark.parametrize(
    "name", ["os_exit", "always_equal", "forged_passed", "patched_builtins", "secret_file", "connect"]
)
def test_best_known_tricks_fail_on_this_machine(name: str, judge: Judge, world: World) -> None:
    verdict = judge.run(world.fill(ATTACKS[name]), Sandbox(memory_mb=512), LIMIT)
    assert verdict.status in (Status.FAILED, Status.CRASHED)


def test_endless_loop_is_killed_in_time() -> None:
    sandbox = Sandbox(memory_mb=512)
    timed = Timed(OUTPUTS)
    assert timed.run(ATTACKS["python_loop"], sandbox, 0.5).status is Status.TIMED_OUT
    assert 0.5 <= timed.seconds < 0.5 + SLACK


@pytest.mark.slow
def test_killed_harness_leaves_no_process(tmp_path: Path) -> None:
    code = (
        "from coda.evaluation.judging import Assertions\nfrom coda.evaluation.sandbox import Sandbox\n"
        "Assertions('assert f() == 1', ('f',)).run('while True: pass', Sandbox(), 600)"
    )
    harness = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    wait_for(lambda: len(processes_of(harness.pid)) >= 3)  # the candidate, the tests, and who watches them
    time.sleep(0.5)
    harness.kill()
    harness.wait()
    wait_for(lambda: not processes_of(harness.pid))


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)
