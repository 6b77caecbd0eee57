"""Memory, communication and time of a stage on a machine, from its config: arithmetic, nothing is run.

``python -m benchmarks.scaling --configs=[configs/stage1.yaml] --machines=[v4-1024,8xH200]``. Of all ways to shard, to
recompute and to divide the batch, the fastest that fits is chosen. ``docs/scaling.md`` has the assumptions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from jsonargparse import auto_cli

from benchmarks.chips import MACHINES, Machine
from benchmarks.losses import read_model
from benchmarks.tables import table
from coda.model import CoDAConfig
from coda.model.flops import training_flops

EFFICIENCY = 0.69  # share of the peak that matrix products and attention reach together: measured kernels of an H100
USABLE = 0.9  # share of the memory that a run may plan with; the rest is fragmentation, buffers and libraries
MASKED = 0.5  # share of the tokens that are predicted, on average, and reach the head where shapes may vary
SHARDINGS, RECOMPUTED = ("sharded", "copies"), ("none", "selective", "full")
CHUNK = 2048  # rows of logits held at once
CONFIGS = [Path("configs/stage1.yaml"), Path("configs/stage2.yaml")]
MODEL = Path("configs/model/qwen3_1.7b.yaml")


@dataclass(frozen=True)
class Job:
    """What a stage asks for: ``rows`` of ``length`` tokens per optimizer step, which keeps ``state`` bytes per weight."""

    name: str
    model: CoDAConfig
    rows: int
    length: int
    steps: int
    state: float

    @property
    def weights(self) -> float:
        """Number of weights; FLOPs of one token that sees no other are six times those of its matrices."""
        vocabulary = self.model.vocab_size * self.model.hidden_size * (1 if self.model.tie_word_embeddings else 2)
        attention = 12 * self.model.num_hidden_layers * self.model.num_attention_heads * self.model.head_dim
        return vocabulary + (training_flops(self.model, 1, 1, 0.0) - attention) / 6


@dataclass(frozen=True)
class Plan:
    """One way to run a job on a machine; bytes, seconds and FLOPs per chip and optimizer step.

    ``rows`` is below 1 where that share of every layer's width is computed by each chip of a tensor-parallel group.
    """

    sharding: str
    recompute: str
    rows: float
    micro_batches: int
    states: float
    activations: float
    head: float
    traffic: float
    compute: float
    memory: float
    network: float
    flops: float

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return self.states + self.activations + self.head

    @property
    def seconds(self) -> float:
        """Kernels run one after the other, communication runs beside them."""
        return max(self.compute + self.memory, self.network)


def read_job(path: Path, model: Path) -> Job:
    """Read what matters of a stage's config; its sizes come from ``model``, because a hub name has none."""
    stage = yaml.safe_load(path.read_text())
    data = yaml.safe_load((path.parent / stage["data"]).read_text())["init_args"]
    factored = stage["model"]["optimizer"]["class_path"].endswith("Adafactor")
    state = 0.0 if factored else 8.0  # else two moments in float32
    steps = stage["trainer"]["max_steps"]
    return Job(path.stem, read_model(model), data["global_batch_size"], data["sequence_length"], steps, state)


def activation_bytes(model: CoDAConfig, recompute: str) -> float:
    """What a layer keeps per token for its backward pass, with attention that keeps no scores.

    The stream between the layers is float32 under autocast, what enters and leaves matrix products bf16.
    """
    width, inner, query = model.hidden_size, model.intermediate_size, model.num_attention_heads * model.head_dim
    key = (model.num_key_value_heads or model.num_attention_heads) * model.head_dim
    products = query + 2 * key + query + width + 2 * inner + width  # q, k, v, attention, o; gate, up, down
    if recompute == "full":
        return 4 * width
    if recompute == "selective":
        return 4 * width + 2 * products
    # The stream before each norm; the norms' results (those of q and k too), rotated q and k, activation and product.
    return 3 * 4 * width + 2 * (products + 2 * width + 2 * (query + key) + 2 * inner)


def plans(job: Job, machine: Machine) -> Iterator[Plan]:
    """All ways that divide the batch; with more chips than rows, groups of chips share a row."""
    share = job.rows / machine.count
    ways = [way for way in RECOMPUTED if way != "selective" or not machine.xla]
    for sharding, recompute, rows in product(SHARDINGS, ways, (1, 2, 4, 8, 16) if share >= 1 else (share,)):
        if (share / rows).is_integer():
            yield plan(job, machine, sharding, recompute, rows, int(share / rows))


def plan(job: Job, machine: Machine, sharding: str, recompute: str, rows: float, micro_batches: int) -> Plan:
    """The arithmetic of one way: ``rows`` at once, ``micro_batches`` times per optimizer step."""
    model, layers, tokens = job.model, job.model.num_hidden_layers, rows * job.length
    sharded, weights, apart = sharding == "sharded", job.weights, (machine.count - 1) / machine.count
    vocabulary = model.vocab_size * model.hidden_size

    states = (8 + job.state) * weights / (machine.count if sharded else 1)  # weights and gradients in float32
    if sharded:  # two layers and the embedding in bf16; gradients that accumulate stay whole until they are summed
        states += 2 * (2 * (weights - vocabulary) / layers + vocabulary) + (4 * weights if micro_batches > 1 else 0)
    else:
        states += 2 * weights  # the copy in bf16
    kept = tokens * layers * activation_bytes(model, recompute)
    one_layer = tokens * activation_bytes(model, "none")
    head = CHUNK * model.vocab_size * (4 + 2) + 4 * vocabulary  # logits and their gradient; the gradient of the head

    predicted = (1.0 if machine.xla else MASKED) * job.length
    flops = rows * training_flops(model, 1, job.length, predicted) * micro_batches
    body = rows * training_flops(model, 1, job.length, 0.0) * micro_batches
    work = flops + (body / 3 if recompute == "full" else 0.0)
    # Kept numbers are written once and read once; recomputed ones are written and read once more.
    moved = micro_batches * (2 * kept + (2 * layers * one_layer if recompute != "none" else 0.0))
    moved += (16 + 2 * job.state) * weights / (machine.count if sharded else 1)  # the optimizer reads and writes
    moved += 3 * 2 * weights * micro_batches  # weights are read forward and twice backward
    gathered = 2 * 2 * weights * micro_batches if sharded else 0.0  # in bf16, forward and backward
    summed = 4 * weights * (1 if sharded else 2)  # reduce-scatter, or all-reduce, in float32, once per step
    traffic = apart * (gathered + summed)
    if rows < 1:  # an all-reduce in bf16 behind attention and MLP, forward and backward, within a tensor-parallel group
        traffic += 2 * (1 - rows) * 4 * layers * job.length * model.hidden_size * 2 * micro_batches
    return Plan(
        sharding, recompute, rows, micro_batches, states, kept + one_layer, head, traffic,
        work / (machine.chip.flops * EFFICIENCY), moved / machine.chip.bandwidth, traffic / machine.interconnect, flops,
    )  # fmt: skip


def choose(job: Job, machine: Machine) -> Plan | None:
    """The fastest plan that fits; the smaller one of equals."""
    fitting = [one for one in plans(job, machine) if one.total <= USABLE * machine.chip.memory]
    return min(fitting, key=lambda one: (round(one.seconds, 3), one.total), default=None)


def report(jobs: list[Job], machines: dict[str, Machine]) -> str:
    """Both tables."""
    memory, times = [], []
    for job, (name, machine) in product(jobs, machines.items()):
        best = choose(job, machine)
        if best is None:
            memory.append((job.name, name, "nothing fits", *[None] * 6))
            continue
        shared = f", tensor parallel {1 / best.rows:.0f}" if best.rows < 1 else ""
        way = (f"{best.sharding}{shared}, recompute {best.recompute}", f"{best.rows:g} x {best.micro_batches}")
        sizes = (best.states, best.activations, best.head, best.total)
        memory.append(
            (job.name, name, *way, *(f"{size / 1e9:.1f}" for size in sizes), f"{best.total / machine.chip.memory:.0%}")
        )
        mfu = best.flops / (machine.chip.flops * best.seconds)
        tokens = job.rows * job.length / best.seconds
        parts = (best.compute, best.memory, best.network, best.seconds)
        rates = (f"{mfu:.0%}", f"{tokens / 1e6:.2f}", f"{job.steps * best.seconds / 86400:.1f}")
        times.append((job.name, name, f"{best.traffic / 1e9:.1f}", *(f"{part:.2f}" for part in parts), *rates))
    first = ["stage", "machine", "chosen", "rows x micro-batches", "states GB", "activations GB", "head GB", "all GB"]
    second = ["stage", "machine", "sent GB", "compute s", "HBM s", "network s", "step s", "MFU", "M tokens/s", "days"]
    return f"{table([*first, 'of HBM'], memory)}\n\n{table(second, times)}"


def main(
    configs: list[Path] = CONFIGS,
    machines: list[str] = list(MACHINES),  # noqa: B006
    model: Path = MODEL,
) -> None:
    """Print the tables, per chip and optimizer step.

    Args:
        configs: Stages.
        machines: Names in :mod:`benchmarks.chips`.
        model: Sizes of the model, a section like those in ``configs/model``.
    """
    unknown = [name for name in machines if name not in MACHINES]
    if unknown:
        raise SystemExit(f"error: machines is {unknown}; known are {', '.join(MACHINES)} (benchmarks/chips.py)")
    print(report([read_job(path, model) for path in configs], {name: MACHINES[name] for name in machines}))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
