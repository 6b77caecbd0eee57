"""Checkpointed and compiled layers: the same losses, gradients and names; layers are recomputed as asked."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from coda.data.tokenizer import train_tokenizer
from coda.model import CoDALanguageModel, ScratchBackbone

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
IDS = torch.arange(96).view(2, 48) % 200


class Products(TorchDispatchMode):
    """Counts matrix products and RMS norms."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.norms = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func is torch.ops.aten.mm.default
        self.norms += func is torch.ops.aten.rsqrt.default
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["def f(x):\n    return x\n"] * 2, 280)


def build(tokenizer: Any, **settings: Any) -> CoDALanguageModel:
    torch.manual_seed(0)
    return ScratchBackbone(**SIZES, num_hidden_layers=2, **settings).build(tokenizer).train()


def gradients(model: CoDALanguageModel) -> tuple[Tensor, Tensor]:
    loss = model(IDS).logits.square().mean()
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("checkpointing", [True, "selective"])
def test_checkpointed_layers_give_the_same_gradients(tokenizer: Any, checkpointing: Any) -> None:
    expected = gradients(build(tokenizer))
    found = gradients(build(tokenizer, gradient_checkpointing=checkpointing))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_selective_checkpointing_recomputes_norms_but_no_product(tokenizer: Any) -> None:
    counts = []
    for checkpointing in (False, "selective", True):
        model = build(tokenizer, gradient_checkpointing=checkpointing)
        with Products() as counter:
            gradients(model)
        counts.append((counter.products, counter.norms))
    (products, norms), (selective_products, selective_norms), (all_products, all_norms) = counts
    assert products == selective_products < all_products
    assert norms < selective_norms == all_norms


@pytest.mark.slow
def test_a_compiled_layer_gives_the_same_gradients_and_is_compiled_once(tokenizer: Any) -> None:
    """Sampling and evaluation in between, at other lengths and with caches, compile nothing."""
    plain, compiled = build(tokenizer), build(tokenizer, compile_layers=True)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    expected = gradients(plain)
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        compiled.zero_grad()
        loss, found = gradients(compiled.train())
        torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(found, expected[1], rtol=1e-4, atol=1e-7)
        settings = {"max_new_tokens": 8, "block_length": 4, "seed": 0}
        texts = [model.eval().diffusion_generate(IDS[:1], cache="dual", **settings) for model in (plain, compiled)]
        assert torch.equal(*texts)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
