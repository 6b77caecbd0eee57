"""Decoding: how far every approximate method agrees with the exact decode of a trained model, and at how many evaluations.

``python -m benchmarks.decoding_agreement --model runs/quickstart/version_0/export`` continues pieces of Python's standard
library. Agreement with one token per step is the share of new tokens that are the same, up to the first difference and
in all.
"""

import sysconfig
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor

from coda.checkpoint import load_model
from coda.model import CoDALanguageModel

BLOCK = {"block_length": 16}
EXACT = {"one token per step": {}, "one token per step, blocks of 16": BLOCK}
METHODS: dict[str, dict[str, Any]] = {
    "prefix cache": {**BLOCK, "cache": "prefix"},
    "dual cache": {**BLOCK, "cache": "dual"},
    "dual cache, refreshed every 4": {**BLOCK, "cache": "dual", "cache_refresh": 4},
    "2 tokens per step": {"tokens_per_step": 2},
    "4 tokens per step": {"tokens_per_step": 4},
    "threshold .5": {"threshold": 0.5},
    "threshold .2": {"threshold": 0.2},
    "factor 2": {"factor": 2.0},
    "entropy bound 1": {"entropy_bound": 1.0},
    "entropy bound 3": {"entropy_bound": 3.0},
    "threshold .2, dual cache": {**BLOCK, "threshold": 0.2, "cache": "dual"},
    "remdm .1": {"remasking": "remdm", "remasking_rate": 0.1},
    "confidence drop .2": {"remasking": "confidence_drop", "remasking_rate": 0.2},
    "guide: its own causal pass": {**BLOCK, "guide": "self"},
}


def pieces(tokenizer: Any, rows: int, length: int) -> Tensor:
    """The first ``length`` tokens of modules of the standard library, int64 [rows, length]."""
    found: list[list[int]] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        ids = tokenizer(path.read_text(encoding="utf-8", errors="ignore")[:4000])["input_ids"]
        if len(ids) >= length:
            found.append(ids[:length])
    return torch.tensor(found[:rows])


def decode(model: CoDALanguageModel, ids: Tensor, new: int, settings: dict[str, Any]) -> tuple[Tensor, float]:
    """New tokens [B, new] and network evaluations per row."""
    fixed: dict[str, Any] = {"max_new_tokens": new, "temperature": 0.0, "seed": 0, "eos_token_id": None}
    output: Any = model.diffusion_generate(ids, **settings, **fixed, return_dict_in_generate=True)
    return output.sequences[:, ids.shape[1] :], float(output.row_nfe.float().mean())


def main(model: str, rows: int = 16, prompt: int = 64, new: int = 32) -> None:
    """Print the table.

    Args:
        model: An exported folder or a Hugging Face name.
        rows: Prompts.
        prompt: Tokens of each.
        new: Tokens to generate.
    """
    network, tokenizer = load_model(model)
    ids = pieces(tokenizer, rows, prompt)
    print(f"{len(ids)} prompts of {prompt} tokens, {new} new tokens, greedy, order by entropy")
    print(f"{'method':32} {'evaluations':>12} {'tokens the same':>16} {'up to the first difference':>27}")
    truth = {name: decode(network.eval(), ids, new, settings) for name, settings in EXACT.items()}
    for name, settings in {**EXACT, **METHODS}.items():
        tokens, nfe = decode(network, ids, new, settings)
        same = tokens == truth[list(EXACT)[int("block_length" in settings)]][0]
        run = same.int().cumprod(dim=1).float().mean()
        print(f"{name:32} {nfe:12.1f} {100 * same.float().mean():15.1f}% {100 * run:26.1f}%")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
