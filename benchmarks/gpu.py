"""Training on one GPU: tokens per second, MFU and memory of the 1.7B configuration, and the largest batch that fits.

``python -m benchmarks --only=[gpu]`` writes the table. Random weights, bf16 mixed precision over float32 master weights, a
whole step: masking, forward, backward, optimizer. Every variant runs in a process of its own. Any machine can run a
miniature, ``python -m benchmarks.gpu --model configs/model/tiny.yaml --vocabulary 512 --lengths=[64] --tokens 64 --limit 4``
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from lightning.fabric.utilities.throughput import get_available_flops
from torch import nn
from transformers import Adafactor

from benchmarks import losses, peers
from benchmarks.losses import Loss, masked_by_us, read_model
from benchmarks.tables import UNAVAILABLE, print_command, table
from coda.model import CoDAConfig, CoDALanguageModel
from coda.model.flops import training_flops
from coda.model.performance import checkpoint_layers, compile_layers

DOCUMENT = 1024  # tokens, where documents are kept apart


@dataclass(frozen=True)
class Variant:
    """What is switched on. ``loss`` is a name of :mod:`benchmarks.losses` or of a peer."""

    loss: str = "ours"
    attention: str = "sdpa"
    compiled: bool = False
    checkpointing: bool | Literal["selective"] = False
    optimizer: str = "fused AdamW"
    chunk: int | None = None
    document: int | None = None


FAST = Variant(compiled=True)
VARIANTS = {
    "plain transformers: full logits, eager": Variant("full_logits", optimizer="AdamW"),
    "dllm": Variant("dllm", optimizer="AdamW"),
    "released": Variant("released", optimizer="AdamW"),
    "ours, eager": Variant(optimizer="AdamW"),
    "ours, eager, fused AdamW": Variant(),
    "ours, compiled": FAST,
    "ours, compiled, Adafactor": replace(FAST, optimizer="Adafactor"),
    "ours, compiled, chunks of 1,024": replace(FAST, chunk=1024),
    "ours, compiled, chunks of 4,096": replace(FAST, chunk=4096),
    "torch's linear cross-entropy, compiled": replace(FAST, loss="torch_linear_cross_entropy"),
    "ours, compiled, selective recomputation": replace(FAST, checkpointing="selective"),
    "ours, compiled, full recomputation": replace(FAST, checkpointing=True),
    "ours, compiled, documents, sdpa": replace(FAST, document=DOCUMENT),
    "ours, compiled, documents, flex": replace(FAST, document=DOCUMENT, attention="flex_attention"),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-5),
    "fused AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-5, fused=True),
    "Adafactor": lambda weights: Adafactor(weights, lr=1e-5, relative_step=False, scale_parameter=False),
}


def build(variant: Variant, config: CoDAConfig, device: torch.device) -> tuple[nn.Module, Loss]:
    """The model and its loss."""
    config._attn_implementation = variant.attention
    if variant.loss in peers.available():
        return peers.available()[variant.loss](config, device)
    score = losses.ours(variant.chunk, variant.document) if variant.loss == "ours" else getattr(losses, variant.loss)
    model, loss = masked_by_us(score)(config, device)
    assert isinstance(model, CoDALanguageModel)
    if variant.checkpointing:
        checkpoint_layers(model, selective=variant.checkpointing == "selective")
    if variant.compiled:
        compile_layers(model)
    return model, loss


def measure(variant: Variant, config: CoDAConfig, length: int, tokens: int, steps: int, limit: int) -> dict[str, float]:
    """Measure one variant in this process: at ``tokens`` tokens, then at twice the rows until memory or ``limit`` ends."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, loss = build(variant, config, device)
    optimizer = OPTIMIZERS[variant.optimizer](model.parameters())
    rows = max(tokens // length, 1)
    found = {"seconds": step_seconds(loss, optimizer, config, rows, length, steps), "peak": peak_bytes(device)}
    found |= {"rows": rows, "largest": rows, "seconds_at_largest": found["seconds"]}
    while 2 * found["largest"] <= limit:
        try:
            larger = int(2 * found["largest"])
            seconds = step_seconds(loss, optimizer, config, larger, length, steps)
        except torch.OutOfMemoryError:
            break
        found |= {"largest": larger, "seconds_at_largest": seconds}
    return found


def step_seconds(
    loss: Loss, optimizer: torch.optim.Optimizer, config: CoDAConfig, rows: int, length: int, steps: int
) -> float:
    """Median wall time of an optimizer step, after two that do not count."""
    device = optimizer.param_groups[0]["params"][0].device
    ids = torch.randint(0, config.mask_token_id, (rows, length), device=device)
    times = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(ids)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def peak_bytes(device: torch.device) -> float:
    """Of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def row(name: str, length: int, found: dict[str, float] | str, config: CoDAConfig) -> list[Any]:
    """A line of the table; ``found`` is a measurement, or why there is none."""
    if isinstance(found, str):
        return [name, length, f"does not run: {found}", *[None] * 6]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = get_available_flops(device, torch.bfloat16) if device.type == "cuda" else None
    cells: list[Any] = [name, length]
    for rows, seconds in ((found["rows"], found["seconds"]), (found["largest"], found["seconds_at_largest"])):
        flops = rows * training_flops(config, 1, length, 0.5 * length) / seconds
        cells += [f"{rows:.0f}", f"{rows * length / seconds:,.0f}", f"{flops / peak:.1%}" if peak else None]
    return [*cells[:5], found["peak"] / 2**30, *cells[5:]]


def run(arguments: list[str]) -> dict[str, float] | str:
    """Measure in a process of its own; the last line of its errors if it fails."""
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    return (done.stderr.strip().splitlines() or ["no message"])[-1][:120]


def main(
    variant: str | None = None,
    only: list[str] | None = None,
    model: Path = Path("configs/model/qwen3_1.7b.yaml"),
    vocabulary: int | None = None,
    lengths: list[int] = [8192, 1024],  # noqa: B006
    tokens: int = 8192,
    steps: int = 10,
    limit: int | None = None,
) -> None:
    """Measure all variants, or one in this process.

    Args:
        variant: Print the measurement of this one as JSON, at the first of ``lengths``.
        only: Some of the variants; null is all, peers only if they are at hand.
        model: Sizes of the model.
        vocabulary: Instead of the model's.
        lengths: Tokens per row.
        tokens: Of the batch that every variant is measured at.
        steps: That count, at each batch size.
        limit: Most rows to try; null is what fits, and needs a GPU.
    """
    config = read_model(model, vocabulary)
    if variant is not None:
        print(json.dumps(measure(VARIANTS[variant], config, lengths[0], tokens, steps, limit or 1 << 20)))
        return
    if limit is None and not torch.cuda.is_available():
        print("there is no GPU; give --limit, and a small --model", file=sys.stderr)
        raise SystemExit(UNAVAILABLE)
    absent = {peer.__name__ for peer in peers.PEERS.values()} - set(peers.available())
    names = only or [name for name, one in VARIANTS.items() if one.loss not in absent]
    rows = []
    shared = [
        f"--model={model}",
        f"--steps={steps}",
        f"--tokens={tokens}",
        f"--vocabulary={vocabulary or 'null'}",
        f"--limit={limit or 'null'}",
    ]
    for length in lengths:
        for name in names:
            rows.append(row(name, length, run([f"--variant={name}", f"--lengths=[{length}]", *shared]), config))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print_command("gpu", f"{model.stem}, bf16 mixed, one process per variant, medians of {steps} steps", device)
    header = [
        "variant",
        "length",
        "rows",
        "tokens/s",
        "MFU",
        "peak GiB",
        "largest batch",
        "tokens/s there",
        "MFU there",
    ]
    print(table(header, rows))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
