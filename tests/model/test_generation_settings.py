"""Bad settings of the sampler: each an error that names the setting, before the model runs. And what settings mean."""

from typing import Any

import pytest
import torch

from coda.model import CoDAConfig, CoDAGenerationConfig, CoDALanguageModel

VOCAB, MASK, POSITIONS = 40, 39, 16


@pytest.fixture(scope="module")
def model() -> CoDALanguageModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": POSITIONS}
    return CoDALanguageModel(CoDAConfig(**sizes, **heads, mask_token_id=MASK, pad_token_id=0)).eval()


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        ([[1, 2]], {"steps": 0}, "steps is 0; it must be at least 1"),
        ([[1, 2]], {"steps": -3}, "steps is -3"),
        ([[1, 2]], {"diffusion_steps": 0}, "steps is 0"),
        ([[1, 2]], {"alg": "greedy"}, "alg is greedy; it must be one of origin, maskgit_plus, topk_margin, entropy"),
        ([[1, 2]], {"alg_temp": -0.1}, "alg_temp is -0.1; it must be 0 or more"),
        ([[1, 2]], {"eps": 1.0}, r"eps is 1.0; it must be in \[0, 1\)"),
        ([[1, 2]], {"eps": -0.1}, "eps is -0.1"),
        ([[1, 2]], {"temperature": -1.0}, "temperature is -1.0; it must be 0 or more"),
        ([[1, 2]], {"top_p": 0.0}, r"top_p is 0.0; it must be in \(0, 1\]"),
        ([[1, 2]], {"top_p": 1.1}, "top_p is 1.1"),
        ([[1, 2]], {"top_k": 0}, "top_k is 0; it must be at least 1"),
        ([[1, 2]], {"max_new_tokens": -1}, "max_new_tokens is -1; it must be 0 or more"),
        ([[1, 2]], {"stepz": 3}, "stepz is not a setting of diffusion_generate"),
        ([[1, 2]], {"seed": [1, 2]}, "seed lists 2 numbers for 1 prompts"),
        ([[1, 2]], {"seed": (1, 2)}, "seed lists 2 numbers for 1 prompts"),
        ([[1, 2]], {"mask_token_id": VOCAB}, "mask_token_id is 40, outside the model's vocabulary of 40"),
        ([[1, 2]], {"mask_token_id": -1}, "mask_token_id is -1, outside the model's vocabulary"),
        ([[1, 2]], {"max_new_tokens": 0}, "the prompt fills the canvas; raise max_new_tokens"),
        ([[1, 2]], {"max_new_tokens": None}, "the prompt fills the canvas; raise max_new_tokens"),
        ([[1, 2]], {"max_new_tokens": None, "max_length": 2}, "the prompt fills the canvas"),
        ([[1, 2]], {"max_new_tokens": None, "max_length": 1}, "the prompt fills the canvas"),
        (
            [[1, 2]],
            {"max_new_tokens": POSITIONS - 1},
            "take 17 positions, the model has 16; shorten the prompt or lower",
        ),
        ([[1, 2], [MASK, 2]], {}, "prompt 1 starts with a masked token.*put a token before it"),
        ([[]], {}, "prompt 0 starts with a masked token"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_bad_setting_is_named_before_the_model_runs(
    model: CoDALanguageModel, inputs: list[list[int]], settings: dict[str, Any], message: str
) -> None:
    calls: list[int] = []
    hook = model.register_forward_pre_hook(lambda *args: calls.append(1))
    with pytest.raises(ValueError, match=message):
        model.diffusion_generate(torch.tensor(inputs, dtype=torch.long), **{"max_new_tokens": 4} | settings)
    hook.remove()
    assert not calls


@pytest.mark.parametrize("name", ["steps", "top_k"])
def test_a_bad_setting_in_a_config_object_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        CoDAGenerationConfig(**{name: 0})


def test_a_mask_that_is_left_of_a_padded_prompt_counts_from_the_prompt(model: CoDALanguageModel) -> None:
    """The first real token of a left-padded row is its second here."""
    with pytest.raises(ValueError, match="prompt 0 starts with a masked token"):
        model.diffusion_generate(torch.tensor([[0, MASK, 3]]), torch.tensor([[0, 1, 1]]), max_new_tokens=2)


def test_masks_in_the_padding_are_not_filled(model: CoDALanguageModel) -> None:
    out = model.diffusion_generate(torch.tensor([[MASK, 2, 3]]), torch.tensor([[0, 1, 1]]), max_new_tokens=2)
    assert out[0, 0] == MASK
    assert (out[0, 1:] != MASK).all()


def test_padding_takes_no_positions(model: CoDALanguageModel) -> None:
    """A padded row may be longer than the model's positions as long as its tokens are not."""
    inputs, mask = torch.tensor([[0] * 10 + [1, 2]]), torch.tensor([[0] * 10 + [1, 1]])
    out = model.diffusion_generate(inputs, mask, max_new_tokens=14, seed=0)
    assert (
        out[0, 10:].tolist() == model.diffusion_generate(torch.tensor([[1, 2]]), max_new_tokens=14, seed=0)[0].tolist()
    )


def test_max_length_counts_the_prompt(model: CoDALanguageModel) -> None:
    inputs = torch.tensor([[1, 2, 3]])
    by_length = model.diffusion_generate(inputs, max_length=8, seed=0)
    assert torch.equal(by_length, model.diffusion_generate(inputs, max_new_tokens=5, seed=0))


def test_max_length_given_in_the_call_overrides_new_tokens_of_the_config(model: CoDALanguageModel) -> None:
    config = CoDAGenerationConfig(max_new_tokens=3)
    assert model.diffusion_generate(torch.tensor([[1, 2]]), generation_config=config, max_length=9).shape == (1, 9)


def test_the_call_overrides_the_config_and_leaves_it_as_it_was(model: CoDALanguageModel) -> None:
    config = CoDAGenerationConfig(max_new_tokens=6, steps=2, return_dict_in_generate=True)
    before = config.to_dict()
    assert model.diffusion_generate(torch.tensor([[1, 2]]), generation_config=config).nfe == 2
    assert model.diffusion_generate(torch.tensor([[1, 2]]), generation_config=config, steps=3).nfe == 3
    assert config.to_dict() == before


def test_another_mask_token_may_be_given(model: CoDALanguageModel) -> None:
    out = model.diffusion_generate(torch.tensor([[1, 7, MASK, 7]]), mask_token_id=7, max_new_tokens=0)
    assert out[0, 2] == MASK
    assert (out != 7).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_models_of_low_precision_sample_too(model: CoDALanguageModel, dtype: torch.dtype) -> None:
    low = CoDALanguageModel._from_config(model.config, dtype=dtype).eval()
    out = low.diffusion_generate(torch.tensor([[1, 2]]), max_new_tokens=5, temperature=1.0, top_p=0.9, seed=0)
    assert out.shape == (1, 7)
    assert (out != MASK).all()


def test_inputs_are_not_modified(model: CoDALanguageModel) -> None:
    inputs, mask = torch.tensor([[0, 1, MASK]]), torch.tensor([[0, 1, 1]])
    copies = inputs.clone(), mask.clone()
    model.diffusion_generate(inputs, mask, max_new_tokens=2)
    assert torch.equal(inputs, copies[0])
    assert torch.equal(mask, copies[1])
