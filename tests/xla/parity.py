"""A program: the losses of 20 steps for each feature on the meshes named after the folder; ``cpu`` is without XLA."""

import json
import sys
from typing import Any

from tests.xla.fits import adafactor, fit, module, strategy

FEATURES: dict[str, dict[str, Any]] = {
    "accumulation": {"accumulate_grad_batches": 2},
    "adafactor": {},
    "checkpointing": {},
    "segments": {"segments": True},
}


def losses(mesh: str, feature: str) -> list[float]:
    chosen = None if mesh == "cpu" else strategy(mesh, gradient_checkpointing=feature == "checkpointing")
    model = module(adafactor) if feature == "adafactor" else module()
    return fit(chosen, model=model, max_steps=20, **FEATURES[feature])


if __name__ == "__main__":
    print("RESULT" + json.dumps({mesh: {name: losses(mesh, name) for name in FEATURES} for mesh in sys.argv[2:]}))
