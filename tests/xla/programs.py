"""Runs programs on PJRT's CPU device, each in a process of its own: XLA has one number of devices for all its life."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = "--xla_backend_optimization_level=0"  # a third of the time to compile


def run_python(
    *arguments: str, devices: int, flags: str = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run ``python *arguments`` from the root of the repository, on XLA devices of the CPU."""
    if importlib.util.find_spec("torch_xla") is None:
        pytest.skip("torch_xla is not installed: make test-xla")
    hardware = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(devices), "TF_CPP_MIN_LOG_LEVEL": "2"}
    settings = {**hardware, "XLA_FLAGS": f"{FLAGS} {flags}", "PYTHONPATH": str(ROOT), **environment}
    # Set by jax where there is no TPU, if another test imported it; Lightning's question for one then ends in an error.
    inherited = {name: value for name, value in os.environ.items() if name != "TPU_SKIP_MDS_QUERY"}
    return subprocess.run(
        [sys.executable, *arguments], env=inherited | settings, cwd=ROOT, capture_output=True, text=True, check=False
    )


def run_program(*arguments: str, devices: int = 1, flags: str = "") -> Any:
    """As :func:`run_python`; returns what follows ``RESULT`` in its output, as JSON."""
    run = run_python(*arguments, devices=devices, flags=flags)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.split("RESULT")[-1])
