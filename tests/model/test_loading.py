"""Reading checkpoints of others: plain Qwen3 models, the released CoDA layout, and what is neither."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from coda.model import CoDAConfig, CoDAGenerationConfig, CoDALanguageModel

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
}
# config.json and generation_config.json of Salesforce/CoDA-v0, at tiny sizes.
RELEASED_CONFIG = SIZES | {
    "architectures": ["CoDALanguageModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_kernel": "flash_attention",
    "auto_map": {"AutoConfig": "model_config.CoDAConfig", "AutoModel": "modeling_coda.CoDALanguageModel"},
    "block_masking_probability": [0.25, 0.5, 0.5, 0.75, 0.25],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "mask_block_sizes": [4, 8, 16, 32],
    "mask_token_id": 38,
    "max_window_layers": 28,
    "model_type": "CoDA",
    "pad_token_id": 36,
    "prefix_probability": 0,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sampling_eps": [0.001, 0.25, 0.5, 0.25, 0.001],
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.47.1",
    "truncate_probability": 0,
    "use_cache": True,
    "use_sliding_window": False,
}
RELEASED_GENERATION = {
    "alg": "original",
    "alg_temp": 0.2,
    "diffusion_steps": 10,
    "eps": 0.001,
    "mask_token_id": 38,
    "max_tokens": 12,
    "output_history": False,
    "top_k": None,
    "top_p": None,
    "transformers_version": "4.47.1",
}


def plain_qwen3(**settings: Any) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES | settings))


def load(folder: Path, **options: Any) -> CoDALanguageModel:
    return CoDALanguageModel.from_pretrained(folder, **options)


def is_tied(model: CoDALanguageModel) -> bool:
    return model.lm_head.weight is model.model.embed_tokens.weight


def assert_same_weights(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    weights = model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in weights)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A folder as released: its head is untied although its config says otherwise."""
    torch.manual_seed(0)
    weights = CoDALanguageModel(CoDAConfig(**SIZES, mask_token_id=38, pad_token_id=36)).state_dict()
    weights = {key: value.clone() for key, value in weights.items()}
    weights[HEAD] = 3 * torch.randn_like(weights[HEAD])
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(RELEASED_CONFIG))
    (tmp_path / "generation_config.json").write_text(json.dumps(RELEASED_GENERATION))
    return tmp_path


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("head_dim", [4, 12], ids=["heads equal hidden", "heads beyond hidden"])
def test_a_plain_qwen3_keeps_its_weights_and_its_tie(tmp_path: Path, tied: bool, head_dim: int) -> None:
    parent = plain_qwen3(tie_word_embeddings=tied, head_dim=head_dim)
    parent.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert type(model) is CoDALanguageModel
    assert model.config.model_type == "CoDA"
    assert_same_weights(model, parent.state_dict())
    assert is_tied(model) == tied == model.config.tie_word_embeddings


def test_the_rotary_base_of_the_checkpoint_counts(tmp_path: Path) -> None:
    plain_qwen3(rope_parameters={"rope_type": "default", "rope_theta": 5000.0}).save_pretrained(tmp_path)
    assert load(tmp_path).config.rope_parameters["rope_theta"] == 5000.0


def test_sampling_settings_of_an_autoregressive_parent_are_not_inherited(tmp_path: Path) -> None:
    parent = plain_qwen3()
    parent.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_k=20, top_p=0.95, max_new_tokens=2048, eos_token_id=[37, 36]
    )
    parent.save_pretrained(tmp_path)
    settings = load(tmp_path).generation_config
    assert isinstance(settings, CoDAGenerationConfig)
    inherited = [
        getattr(settings, name, None) for name in ("do_sample", "temperature", "top_k", "top_p", "max_new_tokens")
    ]
    assert inherited == [None] * 5
    assert (settings.alg, settings.steps) == ("entropy", None)


def test_without_generation_settings_in_the_folder_ours_are_used(tmp_path: Path) -> None:
    plain_qwen3().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert isinstance(load(tmp_path).generation_config, CoDAGenerationConfig)


def test_the_released_head_stays_untied_and_the_config_says_so(released: Path) -> None:
    model = load(released)
    assert not is_tied(model)
    assert model.config.tie_word_embeddings is False
    assert_same_weights(model, load_file(released / "model.safetensors"))


def test_the_released_head_survives_saving_and_loading(released: Path, tmp_path: Path) -> None:
    first = load(released)
    first.save_pretrained(tmp_path / "again")
    second = load(tmp_path / "again")
    assert not is_tied(second)
    assert second.config.tie_word_embeddings is False
    assert_same_weights(second, first.state_dict())
    assert HEAD in load_file(tmp_path / "again" / "model.safetensors")


def test_the_released_head_learns_apart_from_the_embedding(released: Path) -> None:
    """Also after transformers ties weights anew, as it does when the vocabulary grows."""
    model = load(released)
    model.resize_token_embeddings(48)
    assert not is_tied(model)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_tied_model_stays_tied_through_saving(tmp_path: Path) -> None:
    plain_qwen3(tie_word_embeddings=True).save_pretrained(tmp_path / "parent")
    load(tmp_path / "parent").save_pretrained(tmp_path / "ours")
    assert HEAD not in load_file(tmp_path / "ours" / "model.safetensors")
    assert is_tied(load(tmp_path / "ours"))


def test_equal_copies_of_the_head_in_the_file_are_tied(released: Path) -> None:
    weights = load_file(released / "model.safetensors")
    save_file(weights | {HEAD: weights[EMBEDDING].clone()}, released / "model.safetensors", metadata={"format": "pt"})
    model = load(released)
    assert is_tied(model)
    assert model.config.tie_word_embeddings is True


def test_the_released_config_is_read(released: Path) -> None:
    config = load(released).config
    assert (config.mask_token_id, config.pad_token_id, config.shift) == (38, 36, True)
    assert config.rope_parameters["rope_theta"] == 1_000_000
    assert (config.head_dim, config.num_key_value_heads, config.rms_norm_eps) == (4, 2, 1e-6)


def test_the_released_generation_settings_are_understood(released: Path) -> None:
    model = load(released)
    settings = model.generation_config
    assert isinstance(settings, CoDAGenerationConfig)
    assert (settings.steps, settings.max_new_tokens, settings.alg, settings.alg_temp) == (10, 12, "origin", 0.2)
    assert (settings.eps, settings.mask_token_id, settings.top_k, settings.top_p) == (1e-3, 38, None, None)
    out = model.diffusion_generate(torch.tensor([[1, 2, 3]]), return_dict_in_generate=True)
    assert out.sequences.shape == (1, 15)
    assert 0 < out.nfe <= 10  # origin stops once all is filled


def test_the_released_names_work_as_overrides(released: Path) -> None:
    out = load(released).diffusion_generate(
        torch.tensor([[1, 2]]), max_tokens=6, diffusion_steps=3, alg="original", return_dict_in_generate=True
    )
    assert out.sequences.shape == (1, 8)
    assert 0 < out.nfe <= 3  # origin stops once all is filled


def test_generation_settings_survive_saving(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CoDALanguageModel(CoDAConfig(**SIZES, mask_token_id=38, pad_token_id=36))
    changes = {"steps": 7, "alg": "topk_margin", "alg_temp": 0.3, "eps": 0.01, "temperature": 0.1, "top_p": 0.9}
    for name, value in changes.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(tmp_path)
    settings = load(tmp_path).generation_config
    assert {name: getattr(settings, name) for name in changes} == changes


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a 'llama' model; give a Qwen3 or a CoDA checkpoint"):
        load(tmp_path)


def test_missing_weights_are_an_error_that_names_one(released: Path) -> None:
    weights = load_file(released / "model.safetensors")
    for name in ("k_proj", "q_proj"):
        del weights[f"model.layers.1.self_attn.{name}.weight"]
    save_file(weights, released / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 2 weights, e\.g\. model\.layers\.1\.self_attn\.k_proj\.weight"):
        load(released)


def test_unknown_weights_are_an_error_that_names_them(released: Path) -> None:
    weights = load_file(released / "model.safetensors")
    more = {f"model.layers.{i}.self_attn.gate.weight": torch.ones(2) for i in range(2)}
    save_file(weights | more, released / "model.safetensors", metadata={"format": "pt"})
    names = r"model\.layers\.0\.self_attn\.gate\.weight, model\.layers\.1\.self_attn\.gate\.weight"
    with pytest.raises(ValueError, match=rf"no Qwen3 or CoDA checkpoint: it has unknown 2 weights, e\.g\. {names}"):
        load(released)


def test_weights_of_another_size_are_an_error_that_names_them(released: Path) -> None:
    weights = load_file(released / "model.safetensors")
    save_file(weights | {"model.norm.weight": torch.ones(7)}, released / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"it resizes 1 weights, e\.g\. model\.norm\.weight"):
        load(released)


def test_loading_info_is_still_to_be_had(released: Path) -> None:
    model, info = load(released, output_loading_info=True)
    assert isinstance(model, CoDALanguageModel)
    assert not info["missing_keys"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_type_of_the_weights_is_the_callers_choice(released: Path, dtype: str) -> None:
    assert {parameter.dtype for parameter in load(released, dtype=dtype).parameters()} == {getattr(torch, dtype)}
