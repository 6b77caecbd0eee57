"""The one way in which measurements become tables of RESULTS.md.

A benchmark prints where it ran and Markdown tables; :func:`write` puts what it printed between the marks of its name,
``<!-- begin NAME -->`` and ``<!-- end NAME -->``. Whatever stands outside of marks is prose by hand.
"""

import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).with_name("RESULTS.md")
UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h: what a benchmark needs is not on this machine


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; floats are printed with three significant digits."""
    lines = [header, ["---"] * len(header), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: Any) -> str:
    """``value`` as text; a missing one is empty."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine(device: torch.device | None = None) -> str:
    """Date, device and versions, for the line above a table."""
    name = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else _processor()
    load = f"load {os.getloadavg()[0]:.1f}"
    return f"{date.today().isoformat()}, {name}, {torch.get_num_threads()} threads, {load}, torch {torch.__version__}"


def print_command(module: str, about: str, device: torch.device | None = None) -> None:
    """Print the command, what is measured, and where."""
    command = " ".join(["python -m", f"benchmarks.{module}", *sys.argv[1:]])
    print(f"`{command}`, {machine(device)}: {about}\n")


def write(name: str, text: str, path: Path = RESULTS) -> None:
    """Replace what is between the marks of ``name``. Raises ValueError if there are none."""
    found, marks = path.read_text(), re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if len(marks.findall(found)) != 1:
        raise ValueError(
            f"{path} has no region '<!-- begin {name} -->' ... '<!-- end {name} -->', or two of them; add it"
        )
    path.write_text(marks.sub(lambda match: f"{match[1]}{text.strip()}\n{match[2]}", found))


def _processor() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{os.cpu_count()} cores of {model}"
