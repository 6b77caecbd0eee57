"""Run benchmarks one after the other and write their tables: ``python -m benchmarks``, or ``make bench``.

``python -m benchmarks --only=[masking,decoding]`` runs some of them. One that cannot run here leaves its table alone.
"""

import subprocess
import sys
from pathlib import Path

from jsonargparse import auto_cli

from benchmarks.tables import RESULTS, UNAVAILABLE, write

SUITE = ("training_step", "profile", "masking", "data_loading", "decoding", "judging")


def main(only: list[str] | None = None, options: list[str] | None = None, output: Path = RESULTS) -> None:
    """Measure and rewrite the tables.

    Args:
        only: Names of benchmarks; null is all that any machine can run, that is without ``gpu``.
        options: Passed on to each of them.
        output: File with their regions.
    """
    for name in only or SUITE:
        command = [sys.executable, "-m", f"benchmarks.{name}", *(options or [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode == UNAVAILABLE:
            print(f"{name}: left as it was")
        elif done.returncode:
            sys.exit(f"error: {' '.join(command[1:])} failed; its table is left as it was")
        else:
            print(done.stdout, flush=True)
            write(name, done.stdout, output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
