"""A program: the command line with the overlay of a TPU of four chips, on four devices."""

import json
import os

from tests.test_cli import cli

if __name__ == "__main__":
    made = cli("--config", "stage2.yaml", "--config", "trainer/tpu_v4_8.yaml")
    strategy = made.trainer.strategy
    result = {
        "strategy": type(strategy).__name__,
        "mesh": dict(strategy.mesh.shape()),
        "precision": made.trainer.precision,
        "attention": made.model.backbone_source.attn_implementation,
        "flags": os.environ["LIBTPU_INIT_ARGS"].split(),
    }
    print("RESULT" + json.dumps(result))
