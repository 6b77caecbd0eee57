"""Training on one GPU: tokens per second, MFU and memory of the 1.7B configuration, and the largest batch that fits.

``python -m benchmarks --only=[gpu]`` writes the table. Random weights, bf16 mixed precision over float32 master weights, a
whole step: masking, forward, backward, optimizer. Every variant runs in processes of its own, in turns with the others;
what cannot run here is a line that says why. Any machine can run a miniature,
``python -m benchmarks.gpu --model configs/model/tiny.yaml --vocabulary 512 --lengths=[64] --tokens 64 --limit 4``
"""

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning.fabric.utilities.throughput import get_available_flops

from benchmarks.chips import H200
from benchmarks.gpu_variants import OPTIMIZERS, VARIANTS, Variant, build
from benchmarks.losses import Loss, read_model
from benchmarks.tables import UNAVAILABLE, print_command, table
from coda.model import CoDAConfig
from coda.model.flops import training_flops

WARM_UP = 4  # steps: compilation, recording of graphs, and the first that is as all others
HEADER = ("variant", "length", "rows", "tokens/s", "MFU", "peak GiB", "largest batch", "tokens/s there", "MFU there")
Measured = dict[str, float]


class Clock:
    """Marks moments without making the host wait, as training does not either."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Now, or on a GPU when it gets here."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between neighbouring marks."""
        if not self.on_gpu:
            return [end - start for start, end in pairwise(self.marks)]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in pairwise(self.marks)]


def measure(variant: Variant, config: CoDAConfig, length: int, tokens: int, steps: int, limit: int) -> Measured:
    """Measure one variant in this process, at ``tokens`` tokens; then find the most rows that fit, up to ``limit``.

    A compiled layer is compiled for the first number of rows, and once more for all others.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, loss = build(variant, config, device)
    optimizer = OPTIMIZERS[variant.optimizer](model.parameters())
    times: dict[int, float] = {}

    def fits(rows: int) -> bool:
        try:
            with variant.kernels():
                times[rows] = step_seconds(loss, optimizer, config, rows, length, steps)
        except RuntimeError as error:  # cuBLAS and the driver have errors of their own for it
            if not times or "memory" not in str(error).lower():
                raise
        optimizer.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()
        return rows in times

    rows = max(tokens // length, 1)
    fits(rows)
    peak = peak_bytes(device)
    most = largest(rows, limit, fits)
    found = {"rows": rows, "seconds": times[rows], "peak": peak}
    return {**found, "largest": most, "seconds_at_largest": times[most]}


def largest(rows: int, limit: int, fits: Callable[[int], bool]) -> int:
    """The most rows that fit, to within an eighth, from ``rows`` that do: twice as many while they fit, then in between."""
    failed = None
    while rows < limit and (failed is None or failed - rows > max(rows // 8, 1)):
        candidate = min(2 * rows, limit) if failed is None else (rows + failed) // 2
        if fits(candidate):
            rows = candidate
        else:
            failed = candidate
    return rows


def step_seconds(
    loss: Loss, optimizer: torch.optim.Optimizer, config: CoDAConfig, rows: int, length: int, steps: int
) -> float:
    """Median time of an optimizer step, after some that do not count."""
    device = optimizer.param_groups[0]["params"][0].device
    torch.manual_seed(rows)  # the same rows for all variants
    ids = torch.randint(0, config.mask_token_id, (rows, length), device=device)
    clock = Clock(device)
    for _ in range(WARM_UP + steps):
        clock.mark()
        if clock.on_gpu:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(ids)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    clock.mark()
    return statistics.median(clock.seconds()[WARM_UP:])


def peak_bytes(device: torch.device) -> float:
    """Of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def peak_flops() -> float | None:
    """Of the GPU, if it is known."""
    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda")
    if "H200" in torch.cuda.get_device_name(device):  # whose plain name Lightning does not know
        return H200.flops
    return get_available_flops(device, torch.bfloat16)


def row(name: str, length: int, found: Measured | str, config: CoDAConfig) -> list[Any]:
    """A line of the table; ``found`` is a measurement, or why there is none."""
    if isinstance(found, str):
        return [name, length, f"not measured: {found}", *[None] * (len(HEADER) - 3)]
    peak = peak_flops()
    cells: list[Any] = [name, length]
    for rows, seconds in ((found["rows"], found["seconds"]), (found["largest"], found["seconds_at_largest"])):
        flops = rows * training_flops(config, 1, length, VARIANTS[name].predicted * length) / seconds
        cells += [f"{rows:.0f}", f"{rows * length / seconds:,.0f}", f"{flops / peak:.1%}" if peak else None]
    return [*cells[:5], found["peak"] / 2**30, *cells[5:]]


def run(arguments: list[str]) -> Measured | str:
    """Measure in a process of its own; the last line of its errors if it fails."""
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    # Without it, batches that would fit fail in the gaps that those before them left.
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    return (done.stderr.strip().splitlines() or ["no message"])[-1][:120].replace("|", "/")


def in_turns(names: list[str], length: int, rounds: int, limit: int | None, shared: list[str]) -> dict[str, Any]:
    """Measurements by variant: the first round's, with the median time of all rounds; or why there are none."""
    found: dict[str, Any] = {name: VARIANTS[name].lacks() for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        most = limit if turn == 0 else 1  # sizes are tried once
        for name in names:
            if isinstance(found[name], str):
                continue
            one = run([f"--variant={name}", f"--lengths=[{length}]", f"--limit={most or 'null'}", *shared])
            print(f"{name}, length {length}, round {turn + 1} of {rounds}: {one}", file=sys.stderr, flush=True)
            if found[name] is None or isinstance(one, str):
                found[name] = one
            if not isinstance(one, str):
                seconds[name].append(one["seconds"])
                found[name]["seconds"] = statistics.median(seconds[name])
    return found


def main(
    variant: str | None = None,
    only: list[str] | None = None,
    model: Path = Path("configs/model/qwen3_1.7b.yaml"),
    vocabulary: int | None = None,
    lengths: list[int] = [8192, 1024],  # noqa: B006
    tokens: int = 8192,
    steps: int = 10,
    rounds: int = 3,
    limit: int | None = None,
) -> None:
    """Measure all variants, or one in this process.

    Args:
        variant: Print the measurement of this one as JSON, at the first of ``lengths``.
        only: Some of the variants; null is all.
        model: Sizes of the model.
        vocabulary: Instead of the model's.
        lengths: Tokens per row.
        tokens: Of the batch that every variant is measured at.
        steps: That count, at each batch size.
        rounds: Processes per variant and length.
        limit: Most rows to try; null is what fits, and needs a GPU.
    """
    config = read_model(model, vocabulary)
    if variant is not None:
        print(json.dumps(measure(VARIANTS[variant], config, lengths[0], tokens, steps, limit or 1 << 20)))
        return
    if limit is None and not torch.cuda.is_available():
        print("there is no GPU; give --limit, and a small --model", file=sys.stderr)
        raise SystemExit(UNAVAILABLE)
    unknown = set(only or ()) - set(VARIANTS)
    if unknown:
        raise SystemExit(f"error: only has {sorted(unknown)}; known are {', '.join(VARIANTS)}")
    shared = [f"--model={model}", f"--steps={steps}", f"--tokens={tokens}", f"--vocabulary={vocabulary or 'null'}"]
    rows = []
    for length in lengths:
        found = in_turns(only or list(VARIANTS), length, rounds, limit, shared)
        rows += [row(name, length, one, config) for name, one in found.items()]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = f"medians of {rounds} processes of {steps} steps each, in turns"
    print_command("gpu", f"{model.stem}, bf16 mixed, {about}", device)
    print(table(HEADER, rows))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
