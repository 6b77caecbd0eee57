"""Attention-mask annealing: from the parent's causal attention to attention on both sides."""

import pytest
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from coda.model import CoDAConfig, CoDALanguageModel, RandomAnnealing

LENGTH = 200
CPU = torch.device("cpu")


def visible(annealing: RandomAnnealing, progress: float, seed: int = 0, length: int = LENGTH) -> Tensor | None:
    """Who may look at whom, bool [query, key]; None if everyone at everyone."""
    function = annealing.visible(length, progress, CPU, torch.Generator().manual_seed(seed))
    if function is None:
        return None
    zero = torch.zeros((), dtype=torch.long)
    return function(zero, zero, torch.arange(length)[:, None], torch.arange(length)[None, :])


@torch.no_grad()
def test_at_the_start_the_model_is_the_autoregressive_parent() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = CoDAConfig(**sizes, **heads, initializer_range=0.3, mask_token_id=39, pad_token_id=0)
    ours = CoDALanguageModel._from_config(config, dtype=torch.float64).eval()
    parent = Qwen3ForCausalLM._from_config(config, dtype=torch.float64).eval()
    parent.load_state_dict(ours.state_dict())
    ids = torch.randint(40, (2, 12))
    logits = ours(ids, visible=RandomAnnealing(0.5).visible(12, 0.0, CPU, None)).logits
    torch.testing.assert_close(logits, parent(ids).logits, atol=1e-5, rtol=0.0)
    assert (ours(ids).logits - logits).abs().max() > 0.1


def test_at_the_start_the_mask_is_exactly_causal() -> None:
    assert torch.equal(visible(RandomAnnealing(0.5), 0.0), torch.ones(LENGTH, LENGTH).tril().bool())


@pytest.mark.parametrize(("until", "progress"), [(0.2, 0.2), (0.2, 0.7), (1.0, 1.0)])
def test_from_until_on_nothing_is_hidden(until: float, progress: float) -> None:
    assert visible(RandomAnnealing(until), progress) is None


@pytest.mark.parametrize(("until", "progress", "share"), [(0.2, 0.05, 0.25), (1.0, 0.5, 0.5), (0.4, 0.36, 0.9)])
def test_the_future_opens_linearly_and_the_past_stays_open(until: float, progress: float, share: float) -> None:
    """19,900 pairs look ahead: 5 sigma of their share is at most .018."""
    seen = visible(RandomAnnealing(until), progress)
    assert seen is not None
    assert seen.tril().sum() == LENGTH * (LENGTH + 1) // 2
    pairs = LENGTH * (LENGTH - 1) // 2
    sigma = (share * (1 - share) / pairs) ** 0.5
    assert abs(float(seen.triu(1).sum()) / pairs - share) < 5 * sigma


def test_the_generator_decides() -> None:
    annealing = RandomAnnealing(0.5)
    assert torch.equal(visible(annealing, 0.2, seed=1), visible(annealing, 0.2, seed=1))
    assert not torch.equal(visible(annealing, 0.2, seed=1), visible(annealing, 0.2, seed=2))


@pytest.mark.parametrize("until", [0.0, -0.1, 1.5])
def test_a_share_outside_training_is_refused(until: float) -> None:
    with pytest.raises(ValueError, match=f"RandomAnnealing.until is {until}"):
        RandomAnnealing(until)
