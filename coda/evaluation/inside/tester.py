"""The tests' process: runs a benchmark's own asserts, with the candidate's functions called in the candidate's process.

The candidate never runs here. Of what it returns only values arrive (see `wire`), so an object that claims to equal
everything equals nothing, and there is no token to steal: nothing here listens to the candidate but these calls.
"""

import builtins
import json
import marshal
import sys
import types
from typing import Any

from . import wire
from .frames import read_frame, write_frame

LARGEST_REPLY = 16 << 20
LARGEST_REQUEST = 1 << 30
NAME = "candidate"  # classes of the tests' set-up are found under one name on both sides


class CandidateGone(BaseException):
    """The candidate's process ended or broke the protocol; no test can catch this as an `Exception`."""


class CandidateError(Exception):
    """The candidate raised something that is no ordinary built-in exception."""


class Remote:
    """A function of the candidate: a call is a message."""

    def __init__(self, name: str, calls: int, answers: int) -> None:
        self.name, self.calls, self.answers = name, calls, answers

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """What the candidate returns; raises what it raised."""
        call = sent((self.name, arguments, keywords))
        try:
            write_frame(self.calls, call)
            reply = read_frame(self.answers, LARGEST_REPLY)
            value = wire.decode(reply[1:])
        except (OSError, EOFError, ValueError) as error:
            raise CandidateGone(str(error)) from None
        if reply[:1] == b"+":
            return value
        raise rebuilt(value)


def sent(call: tuple[Any, ...]) -> bytes:
    """A call as a frame: `marshal` for plain values, pickle for instances of the tests' own classes."""
    try:
        return b"m" + marshal.dumps(call)
    except ValueError:
        import pickle

        return b"p" + pickle.dumps(call)


def rebuilt(value: Any) -> Exception:
    """The exception that the candidate raised, where it is a plain built-in one: some tests catch them."""
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)):
        raise CandidateGone("not an error")
    name, message = value
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and kind not in (UnicodeDecodeError, UnicodeEncodeError):
        try:
            return kind(message)
        except TypeError:
            pass
    return CandidateError(f"{name}: {message}")


def main(requests: int, replies: int, calls: int = -1, answers: int = -1) -> None:
    """Run one set of tests; reply [outcome, detail] with the outcome passed, failed or crashed."""
    request = json.loads(read_frame(requests, LARGEST_REQUEST))
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module
    namespace = module.__dict__
    for text in (request["prelude"], request["setup"]):
        exec(compile(text, "<setup>", "exec"), namespace)
    namespace.update({name: Remote(name, calls, answers) for name in request["functions"]})
    write_frame(replies, json.dumps(outcome(request["tests"], namespace)).encode())


def outcome(tests: str, namespace: dict[str, Any]) -> list[str]:
    """What the tests say."""
    try:
        exec(compile(tests, "<tests>", "exec"), namespace)
    except CandidateGone as error:
        return ["crashed", str(error)]
    except AssertionError as error:
        return ["failed", f"an assert failed {str(error)[:200]}".rstrip()]
    except BaseException as error:
        return ["failed", f"{type(error).__name__}: {str(error)[:200]}"]
    return ["passed", ""]
