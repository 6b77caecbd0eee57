"""What is left of an evaluation: everything that shaped the number, a line per problem, and a table."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import coda
from coda.evaluation.problem import Problem
from coda.evaluation.scores import Judged, by_problem
from coda.files import new_file, write_json
from coda.model import CoDALanguageModel

SETTINGS, RESULTS, PROBLEMS = "settings.json", "results.json", "problems.jsonl"
LIBRARIES = ("torch", "transformers", "tokenizers", "lightning", "numpy", "datasets")


def fingerprint(model: CoDALanguageModel) -> str:
    """SHA-256 of the weights as they are evaluated, and of what the config says of attention, positions and shift."""
    digest = hashlib.sha256()
    neither = ("_", "transformers", "auto_map", "architectures")  # which version wrote it, what an export adds
    config = {key: value for key, value in model.config.to_diff_dict().items() if not key.startswith(neither)}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Versions of what took part, and the machine."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"coda": coda.__version__, **versions, "python": platform.python_version(), "machine": machine}


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Take a folder for samples under these settings, or go on in one that has them.

    Raises:
        ValueError: If it holds samples under other settings; the message has the first that differs.
    """
    path = folder / SETTINGS
    wanted = json.loads(json.dumps(settings, default=str))
    if not path.exists():
        write_json(path, wanted)
        return
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); choose another output folder") from error
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise ValueError(
                f"output: {folder} holds samples with {name} {given.get(name)}, not {wanted.get(name)}; choose another "
                "output folder, or the settings of that one"
            )


def write_problems(folder: Path, problems: list[Problem], judged: Sequence[Judged]) -> None:
    """Write one JSON line per problem: how many samples are right, and each with its program and verdict."""
    with new_file(folder / PROBLEMS) as file:
        for problem, group in zip(problems, by_problem(problems, judged), strict=True):
            samples = [
                {
                    "sample": one.sample.sample,
                    "status": one.verdict.status.value,
                    "detail": one.verdict.detail,
                    "completion": one.sample.completion,
                    "program": one.program,
                }
                for one in group
            ]
            passed = sum(one.verdict.passed for one in group)
            record = {"task_id": problem.task_id, "passed": passed, "of": len(group), "samples": samples}
            file.write((json.dumps(record) + "\n").encode())


def table(results: dict[str, dict[str, Any]]) -> str:
    """All scores as lines of text: shares in percent, with their interval where there is one."""
    rows = [("task", "score", "value", "95% interval", "problems", "nfe", "s/sample")]
    for run, scores in results.items():
        for name, value in scores.items():
            if isinstance(value, dict) and "mean" in value:
                interval = f"{100 * value['low']:.1f} - {100 * value['high']:.1f}"
                shared = (str(scores["problems"]), f"{scores['nfe']:.0f}", f"{scores['seconds']:.2f}")
                rows.append((run, name, f"{100 * value['mean']:.1f}", interval, *shared))
            elif name in ("edit_distance", "evalplus"):
                factor = 100 if name == "evalplus" else 1
                rows.append((run, name, f"{factor * value:.1f}", "", "", "", ""))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, the first row as their heads."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
