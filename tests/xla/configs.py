"""A program: the command line with the overlay of a TPU of four chips, and with both sharding maps, on four devices."""

import json
import os
from typing import Any

from coda.model import CoDAConfig, CoDALanguageModel
from tests.test_cli import cli

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "mask_token_id": 1, "pad_token_id": 0}
MESHES = {"qwen3_fsdp": "{fsdp: 4}", "qwen3_fsdp_tensor": "{fsdp: 2, tensor: 2}"}


def divided(name: str) -> dict[str, Any]:
    """How the map divides the weights of a Qwen3."""
    base = (
        "--config",
        "stage2.yaml",
        "--config",
        "trainer/xla_cpu.yaml",
        "--trainer.strategy.init_args.mesh",
        MESHES[name],
    )
    strategy = cli(*base, "--trainer.strategy.init_args.sharding", f"configs/sharding/{name}.yaml").trainer.strategy
    return strategy.sharding.specs(CoDALanguageModel(CoDAConfig(**SIZES, **HEADS)), strategy.mesh)


if __name__ == "__main__":
    made = cli("--config", "stage2.yaml", "--config", "trainer/tpu_v4_8.yaml")
    strategy = made.trainer.strategy
    result = {
        "strategy": type(strategy).__name__,
        "mesh": dict(strategy.mesh.shape()),
        "precision": made.trainer.precision,
        "attention": made.model.backbone_source.attn_implementation,
        "flags": os.environ["LIBTPU_INIT_ARGS"].split(),
        "maps": {name: divided(name) for name in MESHES},
    }
    print("RESULT" + json.dumps(result))
