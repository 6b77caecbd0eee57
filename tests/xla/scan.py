"""A program: a model whose layers are scanned against one whose layers run one by one, on a mesh of four devices.

The first argument is a new folder.
"""

import json
import re
from typing import Any

import torch
import torch_xla
from torch import Tensor
from transformers import DynamicCache

from coda.model import CoDAConfig, CoDALanguageModel
from coda.xla import ShardingMap, XLASPMDStrategy
from coda.xla.scan import scan_layers
from coda.xla.sharding import send_rows, shard
from tests.xla.fits import fit, strategy

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "initializer_range": 0.2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
SPECIAL = {"mask_token_id": 1, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
ROWS, LENGTH = 4, 24
XLA = torch.device("xla")
OFFLOADED = [[], ["input"], ["input", "self_attn"], ["self_attn.q_proj", "mlp.up_proj"]]


def build(layers: int, mode: str, mesh: Any) -> CoDALanguageModel:
    torch.manual_seed(0)
    model = CoDALanguageModel._from_config(CoDAConfig(**SIZES, **HEADS, **SPECIAL, num_hidden_layers=layers)).to(XLA)
    parameters = dict(model.named_parameters())
    for name, spec in ShardingMap().specs(model, mesh).items():
        shard(parameters[name], mesh, spec)
    ShardingMap().constrain(model, mesh)
    if mode == "recomputed":
        model.gradient_checkpointing_enable()  # which scanning takes over
    if mode != "loop":
        scan_layers(model)
    return model.train()


def inputs(step: int, mesh: Any) -> dict[str, Tensor]:
    """Another batch at every step: nothing of the first may be built into the loop, not even that it has no mask."""
    generator = torch.Generator().manual_seed(step)
    made = {
        "input_ids": torch.randint(2, 60, (ROWS, LENGTH), generator=generator),
        "attention_mask": torch.rand(ROWS, LENGTH, generator=generator) < 0.9,
        "segment_ids": (torch.rand(ROWS, LENGTH, generator=generator) < 0.1).cumsum(dim=1),
    }
    return {name: send_rows(tensor, mesh, XLA) for name, tensor in made.items() if step or name == "input_ids"}


def steps(model: CoDALanguageModel, mesh: Any) -> list[Tensor]:
    """The hidden states and all gradients of three steps, each as one vector."""
    found = []
    for step in range(3):
        model.zero_grad()
        states = model(**inputs(step, mesh), output_logits=False).last_hidden_state
        states.sin().sum().backward()
        gradients = [parameter.grad for parameter in model.model.parameters()]
        both = torch.cat([tensor.detach().flatten() for tensor in [states, *gradients]])
        torch_xla.sync()
        found.append(both.cpu())
    return found


def program(model: CoDALanguageModel, mesh: Any) -> str:
    """That of a forward and a backward pass."""
    states = model(**inputs(1, mesh), output_logits=False).last_hidden_state
    states.sin().sum().backward()
    return str(torch_xla._XLAC._get_xla_tensors_hlo([parameter.grad for parameter in model.model.parameters()]))


def products(model: CoDALanguageModel, mesh: Any) -> int:
    """Matrix products in the program."""
    return len(re.findall(r" dot\(", program(model, mesh)))


def offloaded(names: list[str], mesh: Any) -> dict[str, Any]:
    """What the program moves to the host and back, and its matrix products. A CPU cannot run it."""
    model = build(4, "loop", mesh)
    hooks = scan_layers(model, recompute=True, offload=names)
    text = program(model, mesh)
    calls = [line for line in text.splitlines() if 'custom_call_target="annotate_device_placement"' in line]
    found = {place: sum(f'="{place}"' in line for line in calls) for place in ("pinned_host", "device")}
    shapes = sorted({re.search(r"= (\w+\[[\d,]*\])", line)[1] for line in calls})  # type: ignore[index]
    return found | {"shapes": shapes, "products": len(re.findall(r" dot\(", text)), "hooks": len(hooks)}


def refused(function: Any) -> str:
    try:
        function()
    except ValueError as error:
        return str(error)
    return "accepted"


def cached(model: CoDALanguageModel) -> Tensor:
    """States of the second half of a row, which looks at the keys of the first."""
    ids = torch.arange(2, 2 + LENGTH).repeat(ROWS, 1).to(XLA)
    half = LENGTH // 2
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(ids[:, :half], past_key_values=cache, use_cache=True, output_logits=False)
        return model(ids[:, half:], past_key_values=cache, use_cache=True, output_logits=False).last_hidden_state.cpu()


def scan_fresh(offload: list[str], recompute: bool = True) -> None:
    scan_layers(CoDALanguageModel._from_config(CoDAConfig(**SIZES, **HEADS, **SPECIAL)), recompute, offload)


REFUSED = {
    "no loop": lambda: strategy("1,4,1", offload=["input"]),
    "no TPU": lambda: strategy("1,4,1", scan_layers=True, offload=["input"]),
    "no recomputation": lambda: scan_fresh(["input"], recompute=False),
    "no such part": lambda: scan_fresh(["input", "attention"]),
    "twice": lambda: scan_fresh(["input", "input"]),
}


def main() -> dict[str, Any]:
    # First: scanning imports jax, which without a TPU changes the environment so that no Trainer can be made.
    chosen = strategy("1,4,1", scan_layers=True, gradient_checkpointing=True)
    fits = {"plain fit": fit(None, max_steps=3), "fit": fit(chosen, max_steps=3)}
    mesh = XLASPMDStrategy({"fsdp": 2, "tensor": 2}).mesh
    loop = build(2, "loop", mesh)
    expected, names, looked = steps(loop, mesh), list(loop.state_dict()), cached(loop)
    results: dict[str, Any] = {"products": {"loop": [products(build(n, "loop", mesh), mesh) for n in (2, 4)]}}
    for mode in ("scanned", "recomputed"):
        model = build(2, mode, mesh)
        ours = steps(model, mesh)
        results[mode] = {
            "error": max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, expected, strict=True)),
            "cached": float((cached(model) - looked).abs().max()),
            "names": list(model.state_dict()) == names,
        }
        results["products"][mode] = [products(build(n, mode, mesh), mesh) for n in (2, 4)]
    results["offloaded"] = {", ".join(names): offloaded(names, mesh) for names in OFFLOADED}
    results["refused"] = {name: refused(function) for name, function in REFUSED.items()}
    return results | fits | {"moves": float((expected[1] - expected[2]).abs().max())}


if __name__ == "__main__":
    print("RESULT" + json.dumps(main()))
