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


def run_program(*arguments: str, devices: int = 1, flags: str = "") -> Any:
    """Run ``python *arguments`` from the root of the repository; returns what follows ``RESULT`` in its output, as JSON."""
    if importlib.util.find_spec("torch_xla") is None:
        pytest.skip("torch_xla is not installed: make test-xla")
    hardware = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(devices), "TF_CPP_MIN_LOG_LEVEL": "2"}
    settings = {**hardware, "XLA_FLAGS": f"{FLAGS} {flags}", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, *arguments], env=os.environ | settings, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.split("RESULT")[-1])
