"""The first code in a new process: puts up the fences, then becomes the candidate or the tests.

Two processes: the outer one waits until the inner one ends or the harness hangs up (closes the control pipe, or dies),
and then kills the inner one, with whatever it started. The inner one is the first of its process namespace, so the
kernel ends everything in there with it.
"""

import json
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

from . import candidate, landlock, limits, linux, root, seccomp, tester
from .frames import write_frame

READY = b"ready"
ROLES: dict[str, Callable[..., None]] = {"candidate": candidate.main, "tester": tester.main}


def main() -> None:
    """Read the plan (JSON, the last argument) and follow it."""
    plan = json.loads(sys.argv[-1])
    control, replies = plan["control"], plan["replies"]
    try:
        if "namespaces" in plan["layers"]:
            root.leave_namespaces()
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1, "subreaper")
    except BaseException:
        write_frame(replies, reason())
        os._exit(1)
    alive, held = os.pipe()
    inner = os.fork()
    if inner == 0:
        os.close(held)
        os.close(control)
        become(plan, alive)
    for pipe in (alive, replies, plan["requests"], *plan["peer"]):
        os.close(pipe)
    supervise(inner, control)


def reason() -> bytes:
    """The exception at hand, for the harness to show."""
    import traceback

    return traceback.format_exc().encode()


def supervise(inner: int, control: int) -> None:
    """Wait for the inner process or for the harness to hang up, then leave nothing running."""
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    ended = os.pidfd_open(inner)
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    waiting.register(control, select.POLLIN | select.POLLHUP)
    waiting.poll()
    os.kill(inner, signal.SIGKILL)
    while kill_children():
        pass
    os._exit(0)


def kill_children() -> bool:
    """Kill and reap one round of children (orphans come to this process, the reaper); whether there may be more."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            for child in file.read().split():
                os.kill(int(child), signal.SIGKILL)
    except OSError:
        pass
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        return False
    return True


def become(plan: dict[str, Any], alive: int) -> None:
    """Turn into the role of the plan; never returns."""
    status = 1
    try:
        fence(plan, alive)
        write_frame(plan["replies"], READY)
    except BaseException:
        write_frame(plan["replies"], reason())
        os._exit(1)
    try:
        ROLES[plan["role"]](plan["requests"], plan["replies"], *plan["peer"])
        status = 0
    finally:
        os._exit(status)


def fence(plan: dict[str, Any], alive: int) -> None:
    """Put up every layer of the plan, the outermost first; raises where one cannot stand."""
    layers, user = plan["layers"], plan["user"]
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL, "parent death signal")
    if select.select([alive], [], [], 0)[0]:
        raise RuntimeError("the supervisor has died")
    os.close(alive)
    os.setsid()
    with open("/proc/self/oom_score_adj", "w") as file:  # where memory runs out, this goes first
        file.write("1000")
    scratch = plan["scratch"]
    if "namespaces" in layers:
        root.build_root(plan["readable"])
        scratch = root.SCRATCH
    os.chdir(scratch)
    allowed = limits.defaults(plan["memory"], plan["seconds"])
    if "seccomp" in layers and not {"namespaces", "bubblewrap", "user"} & set(layers):
        del allowed["NPROC"]  # it would count all processes of this user; there are no new ones behind the filter
    limits.restrict(allowed)
    if "user" in layers:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL, "parent death signal")  # a change of user clears it
    linux.prctl(linux.PR_SET_DUMPABLE, 0, "dumpable")
    if "landlock" in layers:
        landlock.restrict([*plan["readable"], *root.DEVICES], [scratch, os.devnull])
    if "seccomp" in layers:
        seccomp.restrict(walled=bool({"namespaces", "bubblewrap"} & set(layers)))
    sys.argv[:] = [""]
    sys.path[:] = [*sys.path[1:], *plan["path"]]
