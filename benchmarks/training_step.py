"""Training step: CPU time and peak memory of four ways to compute the same loss.

``python -m benchmarks.training_step`` at the vocabulary-heavy CPU-sized shape of a diffusion coder. Every variant runs in
processes of its own, in turns; the table has medians, as ratios to plain full logits.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor

from coda.masking import MaskedBatch, RandomMasking
from coda.model import CoDAConfig, CoDALanguageModel
from coda.objective import DiffusionObjective

VOCABULARY, LENGTH, ROWS = 151_936, 1024, 2
Loss = Callable[[CoDALanguageModel, MaskedBatch, Tensor], Tensor]


def full_logits(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor) -> Tensor:
    """The plain implementation: logits of all positions in fp32, unmasked losses filled with zero."""
    logits = model(batch.noisy_input_ids).logits[:, :-1].float()
    nll = F.cross_entropy(logits.flatten(0, 1), batch.target_ids[:, 1:].flatten(), reduction="none").view(ROWS, -1)
    return (nll.masked_fill(~batch.masked[:, 1:], 0) / t[:, None]).sum() / batch.maskable.sum()


def _masked_rows(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hidden = model(batch.noisy_input_ids, output_logits=False).last_hidden_state
    position = batch.masked.flatten().nonzero().squeeze(1)
    weight = (1 / t)[position // LENGTH]
    return hidden.flatten(0, 1)[position - 1], batch.target_ids.flatten()[position], weight


def masked_logits(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor) -> Tensor:
    """Logits of the masked positions only, all at once."""
    hidden, target, weight = _masked_rows(model, batch, t)
    nll = F.cross_entropy(model.lm_head(hidden).float(), target, reduction="none")
    return (nll * weight).sum() / batch.maskable.sum()


def torch_linear_cross_entropy(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor) -> Tensor:
    """torch's own chunked loss, one call per row because it has no per-token weights (torch 2.13)."""
    hidden, target, weight = _masked_rows(model, batch, t)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=256)
    total = hidden.new_zeros(())
    for value in weight.unique():
        row = weight == value
        head = model.lm_head.weight
        total = total + value * F.linear_cross_entropy(hidden[row], head, target[row], reduction="sum", options=options)
    return total / batch.maskable.sum()


def ours(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor) -> Tensor:
    """This project's objective."""
    hidden = model(batch.noisy_input_ids, output_logits=False).last_hidden_state
    output = DiffusionObjective()(hidden, model.lm_head.weight, batch.target_ids, batch.masked, batch.maskable, t)
    return output.loss_sum / output.denominator


VARIANTS: dict[str, Loss] = {
    loss.__name__: loss for loss in (full_logits, masked_logits, torch_linear_cross_entropy, ours)
}


def measure(variant: str, steps: int) -> dict[str, float]:
    """Run ``steps`` optimizer steps of one variant in this process; times in seconds, memory in MiB."""
    torch.manual_seed(0)
    config = CoDAConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    )
    model = CoDALanguageModel(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # without state, so that memory is that of the loss
    ids = torch.randint(0, 150_000, (ROWS, LENGTH))
    maskable = DiffusionObjective().predictable(torch.ones_like(ids, dtype=torch.bool))
    base = _resident_mib()
    losses, times = [], []
    for _ in range(steps + 1):
        t = torch.rand(ROWS) * 0.5 + 0.25
        batch = RandomMasking()(ids, maskable, t, 0.0, mask_token_id=151_669)
        start = time.process_time()
        loss = VARIANTS[variant](model, batch, t)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - start)
        losses.append(float(loss.detach()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(times[1:]), "peak_mib": peak - base, "loss": losses[0]}


def _resident_mib() -> float:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


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
    results: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, found in results.items():
            if name == "torch_linear_cross_entropy" and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
                continue
            command = [sys.executable, "-m", "benchmarks.training_step", "--variant", name, "--steps", str(steps)]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; [{ROWS}, {LENGTH}], vocabulary {VOCABULARY:,}"
    )
    print(f"{'variant':28} {'CPU s':>8} {'ratio':>6} {'peak MiB':>9} {'ratio':>6} {'first loss':>11}")
    reference = results["full_logits"]
    for name, found in results.items():
        if found:
            seconds, peak = _median(found, "seconds"), _median(found, "peak_mib")
            ratios = seconds / _median(reference, "seconds"), peak / _median(reference, "peak_mib")
            print(f"{name:28} {seconds:8.2f} {ratios[0]:6.2f} {peak:9.0f} {ratios[1]:6.2f} {found[0]['loss']:11.5f}")


def _median(found: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in found)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
