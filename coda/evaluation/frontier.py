"""The frontier: accuracy against network evaluations and wall time, over steps and methods (the report's figure 3).

``python -m coda.evaluation.frontier --model DIR --task humaneval --output DIR --steps [32,64,128,256,512,768]``
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from coda.evaluation.benchmarks import Benchmarks
from coda.evaluation.ranks import Ranks
from coda.evaluation.results import aligned, environment
from coda.evaluation.subject import DEVICE, Subject, names_in, run_command
from coda.files import new_file, write_json
from coda.model.generation_config_coda import PACES

COLUMNS = ("method", "settings", "task", "pass@1", "low", "high", "nfe", "seconds", "tokens_per_second", "on_frontier")
STEPS = [32, 64, 128, 256, 512, 768]


def points(methods: dict[str, dict[str, Any]], steps: list[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each method with every number of steps, unless it says itself how many tokens a step commits.

    Args:
        methods: By name, settings of ``diffusion_generate``; a list of values makes one point of each.
        steps: Denoising steps.

    Raises:
        ValueError: If there is nothing to try.
    """
    if not methods or not steps:
        raise ValueError(f"{'methods' if steps else 'steps'} is empty; name some, or leave it out for the default")
    for name, settings in methods.items():
        swept = [key for key, value in settings.items() if isinstance(value, list)]
        if len(swept) > 1:
            raise ValueError(f"methods.{name} has lists of values for {' and '.join(swept)}; give one of them a list")
        if swept:
            yield from ((name, {**settings, swept[0]: value}) for value in settings[swept[0]])
        elif paces(settings):
            yield name, settings
        else:
            yield from ((name, {**settings, "steps": count}) for count in steps)


def paces(settings: dict[str, Any]) -> bool:
    """Whether settings say how many tokens a step commits."""
    return any(settings.get(key) is not None for key in (*PACES, "commit", "guide"))


def point_of(method: str, settings: dict[str, Any], task: str, scores: dict[str, Any]) -> dict[str, Any]:
    """One line of the table, of the scores of a run."""
    accuracy = scores["pass@1"]
    speed = scores["tokens"] / scores["seconds"] if scores["seconds"] else 0.0
    shown = ", ".join(f"{key}={value}" for key, value in settings.items())
    measured = (accuracy["mean"], accuracy["low"], accuracy["high"], scores["nfe"], scores["seconds"], speed)
    return dict(zip(COLUMNS, (method, shown, task, *measured, False), strict=True))


def mark_frontier(rows: list[dict[str, Any]]) -> None:
    """Set ``on_frontier`` where no other point of the task is as accurate with fewer network evaluations, or better."""
    for row in rows:
        rivals = [other for other in rows if other["task"] == row["task"]]
        row["on_frontier"] = not any(
            other["pass@1"] >= row["pass@1"]
            and other["nfe"] <= row["nfe"]
            and (other["pass@1"], -other["nfe"]) != (row["pass@1"], -row["nfe"])
            for other in rivals
        )


def table(rows: list[dict[str, Any]]) -> str:
    """The points as text, by task, the cheapest first; ``*`` marks the frontier."""
    lines = [("", "method", "settings", "task", "pass@1", "95% interval", "nfe", "s/sample", "tokens/s")]
    for row in sorted(rows, key=lambda row: (row["task"], row["nfe"])):
        interval = f"{100 * row['low']:.1f} - {100 * row['high']:.1f}"
        measured = (f"{row['nfe']:.0f}", f"{row['seconds']:.2f}", f"{row['tokens_per_second']:.1f}")
        named = ("*" if row["on_frontier"] else "", row["method"], row["settings"], row["task"])
        lines.append((*named, f"{100 * row['pass@1']:.1f}", interval, *measured))
    return aligned(lines)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the points as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with new_file(path) as file:
        file.write(text.getvalue().encode())


def plot(path: Path, rows: list[dict[str, Any]]) -> bool:
    """Draw accuracy with its interval over network evaluations and over seconds; False if matplotlib is not there."""
    try:
        from matplotlib.figure import Figure  # no pyplot: it wants a display
    except ImportError:
        return False
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("nfe", "seconds"), ("network evaluations per sample", "seconds per sample"), strict=True
    ):
        for method, task in dict.fromkeys((row["method"], row["task"]) for row in rows):
            line = sorted(
                (row for row in rows if (row["method"], row["task"]) == (method, task)), key=lambda row: row[key]
            )
            means = [100 * row["pass@1"] for row in line]
            below = [100 * (row["pass@1"] - row["low"]) for row in line]
            above = [100 * (row["high"] - row["pass@1"]) for row in line]
            places = [row[key] for row in line]
            axes.errorbar(places, means, yerr=[below, above], marker="o", capsize=3, label=f"{method}, {task}")
        axes.set(xlabel=label, ylabel="pass@1, %", xscale="log")
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    return True


def main(
    model: str,
    output: str,
    task: str = "humaneval",
    steps: list[int] | None = None,
    methods: dict[str, dict[str, Any]] | None = None,
    sampler: dict[str, Any] | None = None,
    batch_size: int = 1,
    dtype: str | None = None,
    device: str = DEVICE,
    **options: Any,
) -> list[dict[str, Any]]:
    """Measure accuracy against cost: frontier.csv, frontier.png and a table, one point per method and number of steps.

    Every point is an evaluation of its own under ``output``: the same command goes on where it was stopped.

    Args:
        model: An exported folder, a .ckpt or a Hugging Face name.
        output: Folder for the results.
        task: Names of tasks, with commas between them.
        steps: Denoising steps; null is 32, 64, 128, 256, 512 and 768.
        methods: By name, settings of diffusion_generate, for example {entropy: {}, margin: {alg: topk_margin}, threshold:
            {threshold: [0.7, 0.9]}}; a list makes a point of each value, and a method that says how many tokens a step
            commits is not tried with every number of steps. Null is entropy alone.
        sampler: Settings of all methods in place of the report's.
        batch_size: Canvases decoded at once; 1 gives the time that one user waits.
        dtype: Of weights and arithmetic; null is bfloat16 on GPUs and float32 elsewhere.
        device: Where to run.
        **options: See :class:`coda.evaluation.benchmarks.Benchmarks`.
    """
    wanted = list(points({"entropy": {}} if methods is None else methods, STEPS if steps is None else steps))
    evaluations = []
    for _, settings in wanted:
        merged = {**(sampler or {}), **settings}
        evaluations.append(Benchmarks(names_in(task), sampler=merged, batch_size=batch_size, **options))
    ranks = Ranks.join()
    sandbox = evaluations[0].sandbox() if ranks.first else None
    subject = Subject.load(model, dtype, device)
    for evaluation in evaluations:
        evaluation.check(subject.model, subject.tokenizer)
    rows: list[dict[str, Any]] = []
    for (method, settings), evaluation in zip(wanted, evaluations, strict=True):
        folder = Path(output) / _name(method, settings)
        results = evaluation.run(subject.model, subject.tokenizer, sandbox, ranks, folder, subject.identity)
        rows += [point_of(method, settings, name, scores) for name, scores in results.items() if "pass@1" in scores]
    if ranks.first:
        shaped = {**subject.settings, "batch_size": batch_size, "ranks": ranks.size}
        shaped |= {**evaluations[0].describe(), "sampler": sampler, "methods": methods, "steps": steps}
        report = {"settings": shaped, "environment": environment(), "sandbox": sandbox and sandbox.level}
        write_report(Path(output), rows, report)
    return rows


def write_report(output: Path, rows: list[dict[str, Any]], report: dict[str, Any]) -> None:
    """Write frontier.json, frontier.csv and frontier.png, and print the table last."""
    mark_frontier(rows)
    write_json(output / "frontier.json", {**report, "points": rows})
    write_csv(output / "frontier.csv", rows)
    if not plot(output / "frontier.png", rows):
        rank_zero_info(
            "no plot: matplotlib is not installed; pip install 'coda-diffusion[eval]'. The CSV has all of it"
        )
    rank_zero_info(f"the points are in {output / 'frontier.csv'}")
    print(table(rows))


def _name(method: str, settings: dict[str, Any]) -> str:
    parts = [method, *(f"{key}_{value}" for key, value in settings.items())]
    return "-".join(parts).replace("/", "_")


if __name__ == "__main__":
    run_command(main, "python -m coda.evaluation.frontier", "Measure accuracy against cost.")
