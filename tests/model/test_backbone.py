"""Where the model to train comes from, and how it is fitted to its tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from coda.data.tokenizer import load_tokenizer, train_tokenizer
from coda.model import Backbone, CoDALanguageModel, PretrainedBackbone, ScratchBackbone

ROOT = Path(__file__).parents[2]
QWEN3_TOKENIZER = ROOT.parent / "shared" / "tokenizer" / "qwen3"
TOKENS, MASK = 264, 3  # of the tokenizer below
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["def f(x):\n    return x\n"] * 2, TOKENS)


def save_qwen3(folder: Path, vocab_size: int, dtype: torch.dtype = torch.float32, **settings: Any) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    parent = Qwen3ForCausalLM(Qwen3Config(**SMALL | settings, vocab_size=vocab_size)).to(dtype)
    parent.save_pretrained(folder)
    return parent


def build_from_config(name: str, tokenizer: PreTrainedTokenizerFast) -> CoDALanguageModel:
    """Build what ``configs/model/NAME.yaml`` describes, without memory for its weights."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(Backbone, "backbone")
    config = parser.parse_args(["--backbone", str(ROOT / "configs" / "model" / f"{name}.yaml")])
    backbone = parser.instantiate_classes(config).backbone
    assert isinstance(backbone, ScratchBackbone)
    with torch.device("meta"):
        return backbone.build(tokenizer)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen3_0.6b", 596_049_920),  # as published for Qwen3-0.6B
        ("qwen3_1.7b", 1_720_574_976),  # as published for Qwen3-1.7B
    ],
)
def test_a_size_config_builds_a_model_of_that_size(
    name: str, parameters: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build_from_config(name, tokenizer)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_tiny_config_takes_the_vocabulary_of_its_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_from_config("tiny", tokenizer)
    assert model.config.vocab_size == 320  # 264 tokens, rounded up
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000


def test_the_pretrained_config_starts_from_qwen3_1_7b() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(Backbone, "backbone")
    path = ROOT / "configs" / "model" / "pretrained_qwen3_1.7b.yaml"
    backbone = parser.instantiate_classes(parser.parse_args(["--backbone", str(path)])).backbone
    assert isinstance(backbone, PretrainedBackbone)
    assert backbone.path == "Qwen/Qwen3-1.7B"


@pytest.mark.parametrize("pretrained", [True, False], ids=["pretrained", "scratch"])
def test_the_model_learns_the_special_tokens_of_the_tokenizer(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, pretrained: bool
) -> None:
    save_qwen3(tmp_path, 320)
    backbone = PretrainedBackbone(str(tmp_path)) if pretrained else ScratchBackbone(**SMALL)
    model = backbone.build(tokenizer)
    for config in (model.config, model.generation_config):
        assert (config.mask_token_id, config.pad_token_id, config.eos_token_id) == (MASK, 0, 2)
    model.diffusion_generate(torch.tensor([[5, 6]]), max_new_tokens=2)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_size_from_scratch_is_tied_or_not_as_told(tokenizer: PreTrainedTokenizerFast, tied: bool) -> None:
    model = ScratchBackbone(**SMALL, tie_word_embeddings=tied).build(tokenizer)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("vocab_size", [None, 320, TOKENS])
def test_the_vocabulary_is_the_tokenizers_rounded_up_or_as_told(
    tokenizer: PreTrainedTokenizerFast, vocab_size: int | None
) -> None:
    model = ScratchBackbone(**SMALL, vocab_size=vocab_size).build(tokenizer)
    assert model.config.vocab_size == len(model.lm_head.weight) == (vocab_size or 320)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="vocab_size is 263, but the tokenizer has 264 tokens"):
        ScratchBackbone(**SMALL, vocab_size=263).build(tokenizer)


@pytest.mark.parametrize("load_weights", [True, False])
@pytest.mark.parametrize(("rows", "expected"), [(320, 320), (265, 265), (264, 264), (263, 320), (100, 320)])
def test_an_embedding_grows_only_if_some_token_has_no_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, rows: int, expected: int, load_weights: bool
) -> None:
    """As Qwen3's 151,936 rows hold the added mask 151,669."""
    parent = save_qwen3(tmp_path, rows, tie_word_embeddings=False)
    model = PretrainedBackbone(str(tmp_path)).build(tokenizer, load_weights)
    assert model.config.vocab_size == len(model.lm_head.weight) == len(model.model.embed_tokens.weight) == expected
    if load_weights:
        assert torch.equal(model.model.embed_tokens.weight[:rows], parent.model.embed_tokens.weight)
        assert torch.equal(model.lm_head.weight[:rows], parent.lm_head.weight)


def test_a_grown_tied_embedding_stays_tied(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    save_qwen3(tmp_path, 100, tie_word_embeddings=True)
    model = PretrainedBackbone(str(tmp_path)).build(tokenizer)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_real_tokenizer_fits_the_real_embedding() -> None:
    if not QWEN3_TOKENIZER.is_dir():
        pytest.skip(f"Qwen3's tokenizer is not at {QWEN3_TOKENIZER}")
    model = ScratchBackbone(**SMALL | {"num_hidden_layers": 1}, vocab_size=151_936).build(
        load_tokenizer(str(QWEN3_TOKENIZER))
    )
    config = model.config
    assert (config.vocab_size, config.mask_token_id) == (151_936, 151_669)
    assert (config.pad_token_id, config.eos_token_id) == (151_643, 151_645)


@pytest.mark.parametrize("pretrained", [True, False], ids=["pretrained", "scratch"])
def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path, pretrained: bool) -> None:
    tokenizer = train_tokenizer(["x"], TOKENS)
    tokenizer.mask_token = None
    save_qwen3(tmp_path, 320)
    backbone = PretrainedBackbone(str(tmp_path)) if pretrained else ScratchBackbone(**SMALL)
    with pytest.raises(ValueError, match="has no mask token"):
        backbone.build(tokenizer)


def test_key_heads_that_do_not_divide_the_query_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="num_key_value_heads is 3, which does not divide num_attention_heads 4"):
        ScratchBackbone(num_attention_heads=4, num_key_value_heads=3)


@pytest.mark.parametrize("load_weights", [True, False])
def test_master_weights_are_float32_whatever_the_file_holds(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, load_weights: bool
) -> None:
    parent = save_qwen3(tmp_path, 320, torch.bfloat16)
    model = PretrainedBackbone(str(tmp_path)).build(tokenizer, load_weights)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.lm_head.weight, parent.lm_head.weight.float()) == load_weights


@pytest.mark.parametrize("load_weights", [True, False])
def test_a_missing_folder_is_an_error_that_names_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, load_weights: bool
) -> None:
    with pytest.raises(ValueError, match=f"model.backbone path is {tmp_path}/nothing.*give a checkpoint folder"):
        PretrainedBackbone(f"{tmp_path}/nothing").build(tokenizer, load_weights)


def test_a_truncated_file_is_an_error_that_names_the_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    save_qwen3(tmp_path, 320)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5_000])
    with pytest.raises(ValueError, match=f"model.backbone path is {tmp_path}, where no model can be loaded"):
        PretrainedBackbone(str(tmp_path)).build(tokenizer)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_implementation_is_passed_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, attention: str
) -> None:
    save_qwen3(tmp_path, 320)
    for backbone in (
        ScratchBackbone(**SMALL, attn_implementation=attention),
        PretrainedBackbone(str(tmp_path), None, attention),
    ):
        assert backbone.build(tokenizer).config._attn_implementation == attention


def test_gradient_checkpointing_gives_the_same_gradients_and_runs_the_layers_twice(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    gradients, runs = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = (
            ScratchBackbone(**SMALL, initializer_range=0.3, gradient_checkpointing=checkpointing)
            .build(tokenizer)
            .train()
        )
        calls: list[int] = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *args, calls=calls: calls.append(1))
        segments = torch.tensor([[0] * 5 + [1] * 7])
        model(torch.arange(12)[None] * 20, segment_ids=segments).logits.logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        runs.append(len(calls))
    assert runs == [1, 2]
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert plain.abs().sum() > 0
        torch.testing.assert_close(recomputed, plain)
