"""A program: training steps on an XLA device while all schedules move, and the same steps on the CPU.

Prints for every case the losses, the compilations after each step and the overflow of each micro-batch as JSON.
"""

import json
import os
from types import SimpleNamespace
from typing import Any

os.environ |= {"PJRT_DEVICE": "CPU", "XLA_FLAGS": "--xla_backend_optimization_level=0"}

import torch
import torch_xla
import torch_xla.debug.metrics as metrics
from transformers import Adafactor

from coda.masking import (
    BlockMasking,
    InstructionMasking,
    Linear,
    MaskingStrategy,
    PerEpoch,
    ProgressiveMasking,
    RandomMasking,
    TruncatedSuffix,
    UnmaskablePrefix,
)
from coda.model import CoDAConfig, CoDALanguageModel, RandomAnnealing
from coda.module import DiffusionModule
from coda.objective import DiffusionObjective, UniformTime

STEPS, ACCUMULATE, ROWS, LENGTH, VOCABULARY = 8, 2, 4, 24, 40
LINEAR, TABLE = Linear(0.0, 1.0), PerEpoch([0.0, 0.1, 0.2, 0.3, 0.5])
MASKINGS: dict[str, MaskingStrategy] = {
    "random": RandomMasking(),
    "prefix": UnmaskablePrefix(LINEAR),
    "truncation": TruncatedSuffix(LINEAR, hide_padding=True),
    "block": BlockMasking([2, 4, 8], LINEAR),
    "instruction": InstructionMasking(0.5),
    "progressive": ProgressiveMasking(TABLE, TABLE, LINEAR, [2, 4, 8]),
}
# Of 48 tokens there is room for 19, in chunks of 5; the second and third window are often needed, and often not.
CAPACITY = DiffusionObjective(UniformTime(), capacity=0.4, capacity_rows=2, chunk_size=5)
CASES: dict[str, dict[str, Any]] = {name: {"masking": masking} for name, masking in MASKINGS.items()}
CASES["annealing"] = {"masking": RandomMasking(), "annealing": RandomAnnealing(until=0.8)}
CASES |= {f"{name}, capacity": {"masking": MASKINGS[name], "objective": CAPACITY} for name in ("random", "progressive")}


def module(**options: Any) -> DiffusionModule:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"mask_token_id": 39, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    built = DiffusionModule(SimpleNamespace(), optimizer=lambda groups: None, **options)
    built.backbone = CoDALanguageModel._from_config(CoDAConfig(**sizes, **heads, **ids, tie_word_embeddings=False))
    built.log = lambda *_: None
    return built


def batch(micro_batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(micro_batch)
    prompts = torch.randint(1, LENGTH // 2, (ROWS, 1), generator=generator)
    return {
        "input_ids": torch.randint(1, VOCABULARY - 1, (ROWS, LENGTH), generator=generator),
        "maskable": torch.arange(LENGTH) >= prompts,
        "segment_ids": (torch.rand(ROWS, LENGTH, generator=generator) < 0.1).cumsum(dim=1),
        "sample": torch.arange(ROWS) + micro_batch * ROWS,
    }


def compilations() -> int:
    found = metrics.metric_data("CompileTime")
    return found[0] if found else 0


def train(built: DiffusionModule, device: str) -> dict[str, list[float]]:
    """Run all steps; anything but the step's own execution that waits for the device raises."""
    built.to(device)
    optimizer = Adafactor(built.backbone.parameters(), lr=1e-2, relative_step=False, scale_parameter=False)
    trainer = SimpleNamespace(estimated_stepping_batches=STEPS - 1, accumulate_grad_batches=ACCUMULATE, world_size=1)
    trainer.strategy = SimpleNamespace(replicas=1)
    built._trainer = trainer
    compiled, losses, overflow = [], [], []
    for step in range(STEPS):
        trainer.global_step = step
        for micro_batch in range(ACCUMULATE):
            trainer.is_last_batch = False
            index = step * ACCUMULATE + micro_batch
            inputs = {name: tensor.to(device) for name, tensor in batch(index).items()}
            if device == "xla":
                torch_xla._XLAC._set_allow_execution(False)
            report = built.training_step(inputs, index)
            (report["loss"] / ACCUMULATE).backward()
            built.on_after_backward()
            overflow.append(report["output"].overflow.sum())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(built._loss_sum / built._denominator)
        if device == "xla":
            torch_xla._XLAC._set_allow_execution(True)
            torch_xla.sync()
            compiled.append(compilations())
    return {
        "compilations": compiled,
        "losses": [float(loss) for loss in losses],
        "overflow": [int(count) for count in overflow],
    }


if __name__ == "__main__":
    torch_xla.device()  # before the first backward anywhere: autograd makes one queue per device that is known then
    devices = ("cpu", "xla")
    results = {name: {device: train(module(**case), device) for device in devices} for name, case in CASES.items()}
    print("RESULT" + json.dumps(results))
