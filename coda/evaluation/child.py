"""One sandboxed process as the harness sees it: three pipes, deadlines, and an end that leaves nothing behind."""

import json
import os
import select
import subprocess
import time
from types import TracebackType
from typing import Any, Self

from coda.evaluation.inside.frames import HEADER, STEP
from coda.evaluation.inside.launcher import READY
from coda.evaluation.places import environment, remove_scratch

LONGEST_TRACEBACK = 100_000
END_LIMIT = 5.0  # seconds to wait for a killed process to be gone


class Child:
    """A process that follows ``plan``; `SandboxError` never comes from here, only what the pipes say.

    Args:
        command: the interpreter and what precedes it; the plan becomes its last argument.
        plan: what the launcher reads, without the pipes.
        peer: the candidate's process whose functions this one, a tester, calls.
        scratch: a folder to remove at the end.
    """

    def __init__(self, command: list[str], plan: dict[str, Any], peer: "Child | None", scratch: str | None) -> None:
        self.scratch = scratch
        control, self.control = os.pipe()
        requests, self.requests = os.pipe()
        self.replies, replies = os.pipe()
        shared = [peer.requests, peer.replies] if peer else []
        pipes = {"control": control, "requests": requests, "replies": replies, "peer": shared}
        theirs = [control, requests, replies]
        try:
            self.process = subprocess.Popen(
                [*command, json.dumps({**plan, **pipes})],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(),
                cwd="/",
                pass_fds=[*theirs, *shared],
                start_new_session=True,
            )
        except BaseException:
            self._close_pipes()
            raise
        finally:
            for pipe in theirs:
                os.close(pipe)

    def wait_until_ready(self, deadline: float) -> None:
        """Return once the fences stand; raises `RuntimeError` with the traceback of the process where they do not."""
        said = self.receive(deadline, LONGEST_TRACEBACK)
        if said != READY:
            raise RuntimeError(said.decode(errors="replace"))

    def send(self, data: bytes, deadline: float) -> None:
        """Write one message; raises `TimeoutError` after ``deadline`` (`time.monotonic`), `OSError` where nobody reads."""
        rest = memoryview(HEADER.pack(len(data)) + data)
        os.set_blocking(self.requests, False)
        try:
            while rest:
                self._wait(self.requests, select.POLLOUT, deadline)
                try:
                    rest = rest[os.write(self.requests, rest[:STEP]) :]
                except BlockingIOError:
                    continue
        finally:
            os.set_blocking(self.requests, True)  # a tester may share this pipe

    def receive(self, deadline: float, largest: int) -> bytes:
        """Read one message.

        Raises:
            TimeoutError: it was not there by ``deadline``.
            EOFError: the process has ended.
            ValueError: it is longer than ``largest`` bytes.
        """
        (length,) = HEADER.unpack(self._read(HEADER.size, deadline))
        if length > largest:
            raise ValueError(f"a message of {length} bytes: more than {largest}")
        return self._read(length, deadline)

    def _read(self, length: int, deadline: float) -> bytes:
        parts = []
        while length:
            self._wait(self.replies, select.POLLIN, deadline)
            part = os.read(self.replies, min(length, STEP))
            if not part:
                raise EOFError("the process has ended")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    @staticmethod
    def _wait(pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("the time is up")

    def close(self) -> None:
        """End the process and all that it started, wait until they are gone, and remove what they wrote."""
        os.close(self.control)  # the supervisor sees this and kills what is below it
        self.control = -1
        ended = os.pidfd_open(self.process.pid)  # Popen.wait(timeout) would look only every 50 ms
        try:
            self._wait(ended, select.POLLIN, time.monotonic() + END_LIMIT)
        except TimeoutError:
            self.process.kill()
        finally:
            os.close(ended)
        self.process.wait()
        self._close_pipes()
        if self.scratch is not None:
            remove_scratch(self.scratch)

    def _close_pipes(self) -> None:
        for pipe in (self.control, self.requests, self.replies):
            if pipe >= 0:
                os.close(pipe)
        self.control = self.requests = self.replies = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
