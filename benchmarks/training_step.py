"""Training step: CPU time and peak memory of the project's step, of plain ones, and of peers at hand.

``python -m benchmarks.training_step`` at the vocabulary-heavy CPU-sized shape of a diffusion coder. Every variant runs in
processes of its own, in turns; the table has medians, and ratios to plain full logits and to each peer. Peers:
:mod:`benchmarks.peers`.
"""

import json
import statistics
import subprocess
import sys
import time

import torch
from jsonargparse import auto_cli

from benchmarks.losses import variants
from benchmarks.tables import print_command, table
from coda.model import CoDAConfig

VOCABULARY, LENGTH, ROWS = 151_936, 1024, 2
PARTS = ("forward", "backward", "optimizer")
Measured = dict[str, float]


def measure(variant: str, steps: int, length: int = LENGTH, vocabulary: int = VOCABULARY) -> Measured:
    """Run ``steps`` optimizer steps of one variant in this process; CPU seconds of all threads, memory in MiB."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "head_dim": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = CoDAConfig(vocab_size=vocabulary, mask_token_id=vocabulary - 267, pad_token_id=0, **sizes, **heads)
    model, loss_of = variants()[variant](config, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # without state, so that memory is that of the loss
    torch.manual_seed(1)  # the same rows for all variants, whatever they drew for their weights
    ids = torch.randint(0, vocabulary - 300, (ROWS, length))
    base = _mib("VmRSS")
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(steps + 1):
        marks = [time.process_time()]
        loss = loss_of(ids)
        marks.append(time.process_time())
        loss.backward()
        marks.append(time.process_time())
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.process_time())
        for part, begin, end in zip(PARTS, marks[:-1], marks[1:], strict=True):
            times[part].append(end - begin)
    peak = _mib("VmHWM")  # not that of getrusage, which begins with the parent's
    seconds = {part: statistics.median(found[1:]) for part, found in times.items()}
    return {
        **seconds,
        "step": sum(seconds.values()),
        "process": peak,
        "above": peak - base,
        "loss": float(loss.detach()),
    }


def _mib(entry: str) -> float:
    """Memory of this process, now (VmRSS) or at its peak (VmHWM)."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(entry))
    return int(line.split()[1]) / 1024


def in_turns(names: list[str], steps: int, rounds: int) -> dict[str, Measured]:
    """Medians over ``rounds`` processes of each variant."""
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            command = [sys.executable, "-m", "benchmarks.training_step", "--variant", name, "--steps", str(steps)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}


def report(found: dict[str, Measured]) -> str:
    """The table of times and memory, and that of the ratios of our step to the others."""
    header = [
        "variant",
        *(f"{part}, CPU s" for part in PARTS),
        "step",
        "peak above the model, MiB",
        "whole process, MiB",
    ]
    keys = [*PARTS, "step", "above", "process"]
    times = table(header, [[f"`{name}`", *(one[key] for key in keys)] for name, one in found.items()])
    ours = found["ours"]
    ratios = [
        [f"`{name}`", *(ours[key] / one[key] for key in keys[-3:])] for name, one in found.items() if name != "ours"
    ]
    return f"{times}\n\n" + table(["`ours` against", "CPU time", "peak above the model", "whole process"], ratios)


def main(variant: str | None = None, steps: int = 3, rounds: int = 3) -> None:
    """Measure all variants, or one in this process.

    Args:
        variant: Print the measurement of this one as JSON; null measures all in child processes.
        steps: Optimizer steps per process, after one that does not count.
        rounds: Processes per variant.
    """
    if variant is not None:
        print(json.dumps(measure(variant, steps)))
        return
    found = in_turns(list(variants()), steps, rounds)
    sizes = f"[{ROWS}, {LENGTH}], vocabulary {VOCABULARY:,}, hidden 256, 4 layers, fp32, SGD"
    print_command("training_step", f"{sizes}; medians of {rounds} processes of {steps} steps each")
    print(report(found))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
