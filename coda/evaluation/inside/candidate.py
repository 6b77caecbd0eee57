"""The candidate's process: runs the program, then computes what it is asked for. It knows no test and no answer.

Whatever the program does to this process (to builtins, to these functions, to the pipe), it can only send outputs, and
those are judged elsewhere. The first frame is the request: ``program``; ``calls``, Python text of a list of argument
lists, each answered in turn; ``entry_point``; ``as_set``. Without ``calls``, requests follow as frames
[name, arguments, keywords]. A reply is ``+`` and an encoded value, ``#`` and the digest of a large one, or ``-`` and an
encoded error [name, message].
"""

import itertools
import json
import marshal
import sys
import types
from typing import Any

from . import wire
from .digest import digest
from .frames import read_frame, write_frame

LARGEST_REQUEST = 1 << 30
NAME = "candidate"  # not "__main__": what stands under that guard is no part of a solution
LONGEST_MESSAGE = 300


def main(requests: int, replies: int) -> None:
    """Serve until the harness hangs up."""
    request = json.loads(read_frame(requests, LARGEST_REQUEST))
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module
    failure = run(request["program"], module.__dict__)
    write_frame(replies, failure or b"+null")
    if failure:
        return
    if request.get("calls") is not None:
        answer_all(request, module.__dict__, replies)
    else:
        serve(requests, replies, module.__dict__)


def run(program: str, namespace: dict[str, Any]) -> bytes | None:
    """Run the program's top level; the reply where it failed."""
    try:
        exec(compile(program, "<candidate>", "exec"), namespace)
    except BaseException as error:
        return failed(error)
    return None


def answer_all(request: dict[str, Any], namespace: dict[str, Any], replies: int) -> None:
    """Call the entry point with each of the argument lists; one reply each."""
    names = {"inf": float("inf"), "nan": float("nan"), "set": set}
    for arguments in eval(request["calls"], names):
        reply = answer(namespace, request["entry_point"], arguments, {}, request.get("as_set", False))
        write_frame(replies, reply)


def serve(requests: int, replies: int, namespace: dict[str, Any]) -> None:
    """Answer calls as they come."""
    while True:
        name, arguments, keywords = receive(read_frame(requests, LARGEST_REQUEST))
        write_frame(replies, answer(namespace, name, arguments, keywords))


def receive(data: bytes) -> Any:
    """The call in a frame. It comes from the tests, which this process has no reason to doubt: pickle is fine."""
    if data[:1] == b"m":
        return marshal.loads(data[1:])
    import pickle  # for arguments of the tests' own classes; its import is worth a millisecond

    return pickle.loads(data[1:])


def answer(namespace: dict[str, Any], name: str, arguments: Any, keywords: Any, as_set: bool = False) -> bytes:
    """The reply to one call."""
    try:
        if name not in namespace:
            raise NameError(f"the program defines no {name}")
        output = namespace[name](*arguments, **keywords)
        short = digest(output)
        if short is not None:
            return b"#" + wire.encode(short)
        return b"+" + wire.encode(set(output) if as_set else output)
    except BaseException as error:
        return failed(error)


def failed(error: BaseException) -> bytes:
    """The reply that says what was raised."""
    try:
        message = "".join(itertools.islice(str(error), LONGEST_MESSAGE))
    except BaseException:
        message = ""
    return b"-" + wire.encode([type(error).__name__[:100], message])
