"""A program: the Pallas kernels traced for a TPU inside the model, on a mesh of four devices, forward and backward."""

import json
import re
import sys
from typing import Any
from unittest import mock

import jax
import torch
import torch_xla
from torch import Tensor
from torch_xla.experimental import custom_kernel

from coda.model import CoDAConfig, CoDALanguageModel
from coda.xla import XLASPMDStrategy, attention
from coda.xla.sharding import send_rows, shard

SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
SPECIAL = {"mask_token_id": 1, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
LENGTH = 1024


class _ForTPU:
    """``jax.jit`` that lowers for a TPU, whatever the machine has."""

    jit = staticmethod(jax.jit)

    def __init__(self, function: Any, **options: Any) -> None:
        self.jitted = self.jit(function, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.jitted(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        return self.jitted.trace(*args, **kwargs).lower(lowering_platforms=("tpu",))


def trace_for_tpu(*args: Any, **kwargs: Any) -> Any:
    with mock.patch.object(jax, "jit", _ForTPU):
        return TRACE(*args, **kwargs)


TRACE = custom_kernel.trace_pallas


def hlo(mesh: dict[str, int]) -> str:
    """The program of a forward and a backward pass over two documents a row, padding hidden."""
    strategy = XLASPMDStrategy(mesh)
    config = CoDAConfig(**SIZES, **HEADS, **SPECIAL, attn_implementation=attention.PALLAS)
    model = CoDALanguageModel._from_config(config, attn_implementation=attention.PALLAS).to("xla")
    for parameter in model.parameters():
        shard(parameter, strategy.mesh, (None,) * parameter.ndim)

    def send(tensor: Tensor) -> Tensor:
        return send_rows(tensor, strategy.mesh, torch.device("xla"))

    ids = send(torch.randint(2, 60, (4, LENGTH)))
    segments = send((torch.arange(LENGTH) >= 100).long().repeat(4, 1))
    visible = send((torch.arange(LENGTH) < 200).repeat(4, 1))
    with torch.autocast("xla", dtype=torch.bfloat16):
        states = model(ids, visible, segment_ids=segments, output_logits=False).last_hidden_state
    states.float().square().sum().backward()
    return torch_xla._XLAC._get_xla_tensors_hlo([p.grad for p in model.parameters() if p.grad is not None])


def kernels_for_one_row() -> int:
    """How many kernels a batch runs that the devices cannot share, as when sampling."""
    query, key = torch.zeros(1, 4, 128, 128, device="xla"), torch.zeros(1, 2, 128, 128, device="xla")
    layer = torch.nn.Identity().eval()
    layer.num_key_value_groups = 2  # type: ignore[assignment]
    attended, _ = attention.pallas_attention(layer, query, key, key, None)
    return torch_xla._XLAC._get_xla_tensors_hlo([attended]).count("tpu_custom_call")


def refusal() -> str:
    """What the user reads where there is no TPU."""
    tensor = torch.zeros(1, 1, 128, 128)
    try:
        attention.pallas_attention(torch.nn.Identity(), tensor, tensor, tensor, None)
    except ValueError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    refused = refusal()
    with (
        mock.patch.object(attention, "check_kernel", return_value=None),
        mock.patch.object(custom_kernel, "trace_pallas", trace_for_tpu),
    ):
        program = hlo(json.loads(sys.argv[1]))
        alone = kernels_for_one_row()
    kernels = [line for line in program.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    shapes = [re.search(r"custom-call\((\w+\[[\d,]*\])", line)[1] for line in kernels]  # type: ignore[index]
    quadratic = len(re.findall(rf"\[(?:\d+,)*{LENGTH},{LENGTH}\]", program))
    results = {"first operands": shapes, "quadratic": quadratic, "refusal": refused, "kernels for one row": alone}
    print("RESULT" + json.dumps(results))
