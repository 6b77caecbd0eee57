"""Running what a model wrote: one fresh process per role, behind as many fences as this machine can put up.

Layers, the strongest first. ``namespaces``: own processes, network, IPC, host name, mounts, and a root folder that holds
Python's libraries and a small scratch in memory. ``bubblewrap``: the same through the program of that name, where we may
not make namespaces ourselves. ``landlock``: the kernel refuses files, TCP and signals outside. ``seccomp``: it refuses
new processes, sockets and debugging. ``user``: a user id of its own, where the harness is root. Always: limits on CPU,
memory, files and processes, no capabilities, no input, output thrown away, an empty environment.
"""

import logging
import os
import secrets
import time
from collections.abc import Sequence

from coda.evaluation.child import Child
from coda.evaluation.inside.root import SCRATCH
from coda.evaluation.places import bubblewrap_command, import_path, python_command, readable_paths, scratch_folder

LAYERS = ("namespaces", "bubblewrap", "landlock", "seccomp", "user")
START_LIMIT = 30.0  # seconds that a process may take to put up its fences; a candidate's own limit starts after that
FIRST_USER = 1_000_000_000  # where user ids are drawn from: no account of any machine
log = logging.getLogger(__name__)


class SandboxError(RuntimeError):
    """The harness, not the candidate, failed: a process could not be started behind the layers that were probed."""


class Sandbox:
    """Starts processes behind every layer that works here, which it finds out once, when it is made.

    Args:
        memory_mb: address space of a candidate in MiB; numpy's import wants about 4096.
        allow_unsandboxed: run even where neither namespaces, bubblewrap nor Landlock keep a candidate from this
            machine's files and network.
        layers: which layers to try; fewer than all is for tests of a downgrade.

    Raises:
        ValueError: no such layer.
        SandboxError: nothing protects this machine's files here, and ``allow_unsandboxed`` is off.
    """

    def __init__(self, memory_mb: int = 4096, allow_unsandboxed: bool = False, layers: Sequence[str] = LAYERS) -> None:
        if unknown := set(layers) - set(LAYERS):
            raise ValueError(f"sandbox layers {sorted(unknown)} do not exist: choose from {', '.join(LAYERS)}")
        if memory_mb < 64:
            raise ValueError(f"memory_mb={memory_mb} is less than Python needs: give 64 or more, 4096 for numpy")
        self.memory = memory_mb << 20
        self.level = "unknown"
        self.readable = readable_paths()
        self.path = import_path()
        self.layers = self._probe([layer for layer in LAYERS if layer in layers])
        self.level = "+".join([*self.layers, "rlimits"])
        self._judge_level(allow_unsandboxed)

    def _probe(self, wanted: list[str]) -> tuple[str, ...]:
        """The layers of ``wanted`` that work here together."""
        if os.geteuid() != 0 and "user" in wanted:
            wanted.remove("user")
        without_wrap = [layer for layer in wanted if layer != "bubblewrap"]
        if "namespaces" in wanted and not self._failure(without_wrap):  # the usual case, in one attempt
            return tuple(without_wrap)
        standing: list[str] = []
        for layer in wanted:
            if layer == "bubblewrap" and "namespaces" in standing:
                continue  # one wall of that kind is enough
            reason = self._failure([*standing, layer])
            if reason:
                log.info("sandbox layer %s does not work here: %s", layer, reason)
            else:
                standing.append(layer)
        return tuple(standing)

    def _failure(self, layers: Sequence[str]) -> str:
        """Why a process cannot start behind ``layers``; empty where it can."""
        try:
            with self.start("candidate", 5.0, layers) as child:
                limit = time.monotonic() + START_LIMIT
                child.send(b'{"program": "import json, random, decimal", "calls": "[]"}', limit)
                return child.receive(limit, 1000).decode(errors="replace").removeprefix("+null")
        except (SandboxError, OSError, EOFError, ValueError) as error:
            return str(error).strip().rpartition("\n")[2] or type(error).__name__

    def _judge_level(self, allow_unsandboxed: bool) -> None:
        walls = {"namespaces", "bubblewrap"} & set(self.layers)
        if not walls and "landlock" not in self.layers:
            if not allow_unsandboxed:
                raise SandboxError(
                    f"no sandbox here: namespaces, bubblewrap and Landlock all fail, and programs that a model wrote could "
                    f"read and delete your files (level {self.level}). Use a container with user namespaces, a kernel with "
                    f"Landlock or an installed bubblewrap; or set allow_unsandboxed and answer for it"
                )
            log.warning("UNSANDBOXED: candidates can read and delete this user's files; level: %s", self.level)
        missing = [layer for layer in ("landlock", "seccomp") if layer not in self.layers]
        missing = missing if walls else ["namespaces", *missing]
        if missing:
            log.warning("sandbox DOWNGRADED to level %s: %s not working here", self.level, " and ".join(missing))

    def start(self, role: str, time_limit: float, layers: Sequence[str] | None = None) -> Child:
        """`launch` and wait: a process that is about to read its first request."""
        child = self.launch(role, time_limit, layers)
        try:
            self.wait(child)
        except BaseException:
            child.close()
            raise
        return child

    def wait(self, *children: Child) -> None:
        """Return when the fences of ``children`` stand; raises `SandboxError` where one cannot put them up."""
        deadline = time.monotonic() + START_LIMIT
        for child in children:
            try:
                child.wait_until_ready(deadline)
            except (OSError, EOFError, ValueError, RuntimeError) as error:
                raise SandboxError(f"cannot start a process at sandbox level {self.level}: {error}") from error

    def launch(
        self, role: str, time_limit: float, layers: Sequence[str] | None = None, peer: Child | None = None
    ) -> Child:
        """A process that is putting up its fences; close it, best as a context manager.

        Args:
            role: ``candidate``, or ``tester``, which calls the functions of the candidate ``peer``.
            time_limit: in seconds; its limit of CPU time is a little more.
            layers: instead of all that work here.
            peer: the candidate's process that a tester talks to.
        """
        layers = self.layers if layers is None else layers
        user = FIRST_USER + secrets.randbelow(FIRST_USER)
        walled = bool({"namespaces", "bubblewrap"} & set(layers))
        scratch = SCRATCH if walled else scratch_folder(user if "user" in layers else None)
        plan = {
            "harness": os.getpid(),  # for whoever wonders, in a list of processes, whose this one is
            "role": role,
            "layers": list(layers),
            "user": user,
            "readable": self.readable,
            "path": self.path,
            "scratch": scratch,
            "memory": self.memory,
            "seconds": int(time_limit) + 2,
        }
        command = python_command()
        if "bubblewrap" in layers:
            command = bubblewrap_command(self.readable) + command
        return Child(command, plan, peer, None if walled else scratch)
