"""Decoding on an XLA device: the same tokens as on the CPU, and no compilation from step to step."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Prints, for every method: whether the tokens agree, the compilations after each step, those of a second decode.
PROGRAM = """
import json
import torch
import torch_xla
import torch_xla.debug.metrics as metrics
from transformers.generation.streamers import BaseStreamer
from coda.model import CoDAConfig, CoDALanguageModel

METHODS = {
    "exact": {},
    "sampled": {"steps": 6, "temperature": 0.9, "top_p": 0.9},
    "origin": {"alg": "origin", "steps": 6},
    "threshold": {"threshold": 0.3, "block_length": 12},
    "dual": {"cache": "dual", "block_length": 12},
    "remdm": {"remasking": "remdm", "remasking_rate": 0.3, "steps": 6},
    "stopping": {"eos_token_id": [7, 12]},
}
sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
torch.manual_seed(0)
config = CoDAConfig(**sizes, **heads, mask_token_id=39, pad_token_id=0)
here = CoDALanguageModel._from_config(config).eval()
there = CoDALanguageModel._from_config(config).eval()
there.load_state_dict(here.state_dict())
device = torch_xla.device()
there.to(device)
ids, mask = torch.tensor([[0, 0, 3, 4], [1, 2, 3, 4]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])


def compilations():
    found = metrics.metric_data("CompileTime")
    return found[0] if found else 0


class Counter(BaseStreamer):
    def __init__(self):
        self.counts = []

    def put(self, value):
        pass

    def end(self):
        pass

    def put_draft(self, value):
        self.counts.append(compilations())


results = {}
for name, method in METHODS.items():
    settings = {"max_new_tokens": 12, "seed": 0, "pad_to_multiple_of": 32, **method}
    expected = here.diffusion_generate(ids, mask, **settings)
    counter = Counter()
    inputs = ids.to(device), mask.to(device)
    tokens = there.diffusion_generate(*inputs, streamer=counter, **settings).cpu()
    before = compilations()
    there.diffusion_generate(*inputs, streamer=Counter(), **settings | {"seed": 5})
    results[name] = {
        "equal": torch.equal(tokens, expected), "counts": counter.counts, "again": compilations() - before
    }
print("RESULT" + json.dumps(results))
"""


@pytest.mark.slow
def test_decoding_on_xla_compiles_nothing_from_step_to_step() -> None:
    if importlib.util.find_spec("torch_xla") is None:
        pytest.skip("torch_xla is not installed")
    flags = {"PJRT_DEVICE": "CPU", "XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | flags, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.split("RESULT")[1])
    for name, result in results.items():
        assert result["equal"], name
        settled = result["counts"][-4:]  # each kind of step has a graph of its own: the first, a cached one, a done row
        assert len(set(settled)) == 1, (name, result["counts"])
        assert result["again"] == 0, name
