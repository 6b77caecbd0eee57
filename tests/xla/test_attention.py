"""Pallas attention: its segments and padding against torch's attention, and its program for a TPU on a mesh."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coda.model import CoDAConfig, CoDALanguageModel
from coda.model.modeling_coda import segment_numbers
from coda.xla import attention
from tests.xla.programs import run_program

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
SPECIAL = {"mask_token_id": 1, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
ROWS = 2


def model(implementation: str) -> CoDALanguageModel:
    torch.manual_seed(0)
    config = CoDAConfig(**SIZES, **HEADS, **SPECIAL)
    return CoDALanguageModel._from_config(config, attn_implementation=implementation).eval()


def rows(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, documents whose numbers are not in order, and which tokens are visible: not the last ones of row 0."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 60, (ROWS, length), generator=generator)
    segments = (torch.rand(ROWS, length, generator=generator) < 0.05).cumsum(dim=1) % 3
    visible = torch.ones(ROWS, length, dtype=torch.bool)
    visible[0, -length // 5 :] = False
    return ids, segments, visible


def states(implementation: str, ids: Tensor, **inputs: Any) -> Tensor:
    return model(implementation)(ids, output_logits=False, **inputs).last_hidden_state


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("divided", [True, False])
def test_numbers_in_place_of_a_mask_mean_the_same(divided: bool, hidden: bool) -> None:
    """Rows of 40 tokens fill no block, so that torch attends by the numbers that the kernel would get."""
    ids, segments, visible = rows(40)
    inputs = {"segment_ids": segments if divided else None, "attention_mask": visible if hidden else None}
    ours, expected = states(attention.PALLAS, ids, **inputs), states("sdpa", ids, **inputs)
    read = visible if hidden else torch.ones_like(visible)
    torch.testing.assert_close(ours[read], expected[read], atol=1e-5, rtol=1e-5)
    if hidden:
        seen = states("sdpa", ids, segment_ids=inputs["segment_ids"])
        assert (seen[read] - expected[read]).abs().max() > 0.01, "the padding makes no difference"


def test_hidden_tokens_are_a_segment_that_no_document_shares() -> None:
    segments, visible = torch.tensor([[0, 0, 1, 1], [-1, 7, 7, 0]]), torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1]])
    numbers = segment_numbers(segments, visible)
    assert numbers is not None
    assert numbers.tolist() == [[1, 1, 2, 0], [1, 0, 9, 2]]
    assert segment_numbers(None, visible).tolist() == visible.tolist()  # type: ignore[union-attr]
    assert segment_numbers(segments, None) is segments
    assert segment_numbers(None, None) is None


@pytest.mark.slow
def test_the_kernel_does_the_same_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself, interpreted: segments, padding, heads that share keys, and the scale."""
    jax = pytest.importorskip("jax")
    tpu = pytest.importorskip("jax.experimental.pallas.tpu")
    kernels = pytest.importorskip("jax.experimental.pallas.ops.tpu.flash_attention")

    def interpreted(query: Tensor, key: Tensor, value: Tensor, segments: Tensor, scale: float) -> Tensor:
        with tpu.force_tpu_interpret_mode():
            arrays = [jax.numpy.asarray(tensor.detach().numpy()) for tensor in (query, key, value)]
            numbers = jax.numpy.asarray(segments.int().numpy())
            ids = kernels.SegmentIds(numbers, numbers)
            return torch.tensor(jax.device_get(kernels.flash_attention(*arrays, None, ids, sm_scale=scale)))

    monkeypatch.setattr(attention, "flash_attention", interpreted)
    monkeypatch.setattr(attention, "check_kernel", lambda: None)
    monkeypatch.setattr(attention, "is_divided", lambda rows: True)
    ids, segments, visible = rows(128)
    inputs = {"segment_ids": segments, "attention_mask": visible}
    ours, expected = states(attention.PALLAS, ids, **inputs), states("sdpa", ids, **inputs)
    torch.testing.assert_close(ours[visible], expected[visible], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "shard"), [({"fsdp": 4}, [1, 4]), ({"fsdp": 2, "tensor": 2}, [2, 2])])
def test_each_device_runs_the_kernels_on_its_rows_and_heads(mesh: dict[str, int], shard: list[int]) -> None:
    """Two layers, each with a forward kernel and two backward ones; no tensor of length x length is left."""
    pytest.importorskip("jax")
    traced = run_program("tests/xla/pallas.py", json.dumps(mesh), devices=4)
    assert traced["first operands"] == [f"bf16[{shard[0]},{shard[1]},1024,128]"] * 6
    assert traced["quadratic"] == 0
    assert traced["kernels for one row"] == 0, "sampling a single prompt needs no division"
    assert "attn_implementation xla_pallas is a TPU kernel, but PJRT_DEVICE is CPU" in traced["refusal"]


def test_training_rows_that_fill_no_block_are_refused() -> None:
    tensor = torch.zeros(1, 2, 640, 16)
    with pytest.raises(ValueError, match=r"rows of 640 tokens do not fill.*data.sequence_length"):
        attention.pallas_attention(nn.Identity().train(), tensor, tensor, tensor, None)


@pytest.mark.parametrize("length", [128, 256, 512, 1024, 2048, 8192])
def test_rows_that_fill_blocks(length: int) -> None:
    assert attention.fills_blocks(length)


@pytest.mark.parametrize("length", [64, 200, 384, 640, 1000, 1536])
def test_rows_that_do_not(length: int) -> None:
    assert not attention.fills_blocks(length)
