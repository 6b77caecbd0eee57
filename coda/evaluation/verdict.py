"""What a judge says about one candidate program."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """The outcomes; everything but ``PASSED`` counts as a failure in pass@k."""

    PASSED = "passed"  # every assert held, or every output equalled what was expected
    FAILED = "failed"  # an assert failed, an output differed, or the program raised
    TIMED_OUT = "timed_out"  # killed at its time limit, of wall clock or of CPU
    CRASHED = "crashed"  # the process ended without a proof that it reached the end: exit(0), a signal, no memory


@dataclass(frozen=True)
class Verdict:
    """A status and one short line that says why (``detail`` is made of what the candidate printed: show, never trust)."""

    status: Status
    detail: str = ""

    @property
    def passed(self) -> bool:
        """True only when the candidate proved that it solves the problem."""
        return self.status is Status.PASSED
