"""How every command of this project ends where a setting does not fit: with one line."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """End the process with one line for a ValueError or one of ``kinds``; with ``CODA_TRACEBACK=1``, raise it whole.

    Raises:
        SystemExit: With the message, which Python prints to stderr; the exit status is 1.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get("CODA_TRACEBACK") or not isinstance(error, (ValueError, *kinds)):
            raise
        sys.exit(f"error: {_reason(str(error))}")


def _reason(message: str) -> str:
    """``message`` in one line; of jsonargparse's account of all types, only what a constructor complained of."""
    if not message.startswith("Does not validate against any of the Union subtypes"):
        return " ".join(message.split())  # those of other libraries may have several lines
    reasons = re.findall(r"^ *- (?!Expected a |Does not validate )(.+)$", message, flags=re.MULTILINE)
    return "; or: ".join(dict.fromkeys(reasons)) or " ".join(message.split())
