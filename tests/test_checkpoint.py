"""Self-contained checkpoints: what is written comes back, and what does not fit is refused by name."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from coda.checkpoint import RECORD, check_tokenizer, describe, load_model, load_weights, read_checkpoint
from coda.data.tokenizer import train_tokenizer
from coda.export import export
from coda.model import CoDALanguageModel, ScratchBackbone
from coda.model.modeling_coda import untie

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TEXT = "def f(x):\n    return x + 1\n"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([TEXT] * 3, 270)


def small_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **settings: Any) -> CoDALanguageModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    return ScratchBackbone(**sizes | heads | settings, initializer_range=0.3).build(tokenizer).eval()


def save(model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast, path: Path, **changes: Tensor) -> str:
    """Write what training writes, with some weights changed."""
    weights = {f"backbone.{key}": value for key, value in (model.state_dict() | changes).items()}
    record = {"state_dict": weights | {"bound.value": torch.zeros(())}, RECORD: describe(model, tokenizer)}
    torch.save(record | {"global_step": 5, "loops": {}, "optimizer_states": [{"state": {0: torch.ones(2)}}]}, path)
    return str(path)


def save_folder(model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast, path: Path) -> str:
    export(model, tokenizer, path)
    return str(path)


def assert_same_weights(model: CoDALanguageModel, expected: CoDALanguageModel) -> None:
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def is_tied(model: CoDALanguageModel) -> bool:
    return model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_model_and_tokenizer_come_back(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, tied: bool) -> None:
    model = small_model(tokenizer, tie_word_embeddings=tied)
    model.config.shift = False
    loaded, their_tokenizer = load_model(save(model, tokenizer, tmp_path / "x.ckpt"))
    assert_same_weights(loaded, model)
    assert is_tied(loaded) == tied
    expected = model.config.to_dict() | {"dtype": "float32"}
    assert {key: loaded.config.to_dict()[key] for key in expected} == expected
    assert their_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert their_tokenizer(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    for name in ("mask_token_id", "pad_token_id", "eos_token_id"):
        assert getattr(their_tokenizer, name) == getattr(tokenizer, name) == getattr(loaded.config, name)


def test_a_loaded_model_decodes_as_the_saved_one(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = small_model(tokenizer)
    loaded, _ = load_model(save(model, tokenizer, tmp_path / "x.ckpt"))
    prompt, settings = torch.tensor([[7, 8, 9]]), {"max_new_tokens": 8, "temperature": 0.7, "seed": 3}
    assert torch.equal(
        loaded.eval().diffusion_generate(prompt, **settings), model.diffusion_generate(prompt, **settings)
    )


def test_the_record_is_plain_data(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """So that ``torch.load(weights_only=True)`` reads it, and runs no code."""
    record = describe(small_model(tokenizer), tokenizer)
    path = save(small_model(tokenizer), tokenizer, tmp_path / "x.ckpt")
    assert torch.load(path, weights_only=True)[RECORD] == record


def test_options_reach_the_model(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = save(small_model(tokenizer), tokenizer, tmp_path / "x.ckpt")
    loaded, _ = load_model(path, dtype=torch.bfloat16, attn_implementation="eager")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.config._attn_implementation == "eager"


@pytest.mark.parametrize("write", [save, save_folder], ids=["ckpt", "folder"])
def test_weights_alone_are_copied(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, write: Any) -> None:
    source, model = small_model(tokenizer, seed=0), small_model(tokenizer, seed=1)
    load_weights(model, write(source, tokenizer, tmp_path / "x.ckpt" if write is save else tmp_path / "x"))
    assert_same_weights(model, source)
    assert is_tied(model)
    assert model.lm_head.weight.data_ptr() != source.lm_head.weight.data_ptr()


@pytest.mark.parametrize("write", [save, save_folder], ids=["ckpt", "folder"])
def test_an_untied_head_unties_the_model_that_takes_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, write: Any
) -> None:
    source, model = small_model(tokenizer, tie_word_embeddings=False), small_model(tokenizer, seed=1)
    load_weights(model, write(source, tokenizer, tmp_path / "x.ckpt" if write is save else tmp_path / "x"))
    assert not is_tied(model)
    assert model.config.tie_word_embeddings is False
    assert_same_weights(model, source)


def test_a_model_that_was_untied_is_exported_with_its_head(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source, model = small_model(tokenizer, tie_word_embeddings=False), small_model(tokenizer, seed=1)
    load_weights(model, save(source, tokenizer, tmp_path / "x.ckpt"))
    loaded, _ = load_model(save_folder(model, tokenizer, tmp_path / "x"))
    assert not is_tied(loaded)
    assert_same_weights(loaded, source)


def test_an_untied_head_under_a_tied_config_stays_untied(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = small_model(tokenizer)
    path = save(model, tokenizer, tmp_path / "x.ckpt", **{HEAD: 2 * model.lm_head.weight.detach()})
    loaded, _ = load_model(path)
    assert not is_tied(loaded)
    assert loaded.config.tie_word_embeddings is False
    assert torch.equal(loaded.lm_head.weight, 2 * loaded.model.embed_tokens.weight)


def test_untying_leaves_the_values_as_they_were(tokenizer: PreTrainedTokenizerFast) -> None:
    model = small_model(tokenizer)
    before = model.lm_head.weight.detach().clone()
    untie(model)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    assert torch.equal(model.lm_head.weight, before)
    untie(model)
    assert torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize("write", [save, save_folder], ids=["ckpt", "folder"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 384}, "lm_head.weight is [320, 16] there and [384, 16] here"),
        ({"intermediate_size": 40}, "model.layers.0.mlp.down_proj.weight is [16, 24] there and [16, 40] here"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is absent there and [16] here"),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight is [16] there and absent here"),
    ],
    ids=["vocabulary", "width", "missing layer", "extra layer"],
)
def test_the_first_weight_that_does_not_fit_is_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, write: Any, settings: dict[str, int], message: str
) -> None:
    source = write(small_model(tokenizer), tokenizer, tmp_path / ("x.ckpt" if write is save else "x"))
    model = small_model(tokenizer, seed=1, **settings)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(f"the weights of {source!r} do not fit the model: {message}")):
        load_weights(model, source)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Payload:
    """Runs code when unpickled carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({RECORD: Payload(tmp_path / "owned")}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="is no readable checkpoint"):
        read_checkpoint(str(tmp_path / "x.ckpt"))
    assert not (tmp_path / "owned").exists()


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no checkpoint at '{tmp_path}/x.ckpt'; give an existing"):
        load_model(f"{tmp_path}/x.ckpt")


def test_a_truncated_checkpoint_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = save(small_model(tokenizer), tokenizer, tmp_path / "x.ckpt")
    Path(path).write_bytes(Path(path).read_bytes()[:10_000])
    with pytest.raises(ValueError, match=f"'{path}' is no readable checkpoint"):
        load_model(path)


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, [1, 2], torch.ones(3)], ids=["dict", "list", "tensor"])
def test_a_foreign_checkpoint_is_named(tmp_path: Path, foreign: Any) -> None:
    path = f"{tmp_path}/x.ckpt"
    torch.save(foreign, path)
    with pytest.raises(ValueError, match=f"'{path}' was not written by coda.module.DiffusionModule"):
        load_model(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("spoil", [Path.unlink, cut])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_folder_with_missing_or_truncated_files_is_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str, spoil: Callable[[Path], None]
) -> None:
    folder = tmp_path / "x"
    export(small_model(tokenizer), tokenizer, folder)
    spoil(folder / name)
    with pytest.raises(ValueError, match=f"'?{folder}'?"):
        load_model(str(folder))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"no model at '{tmp_path}/nothing'; give a .ckpt, an exported folder or a hub name"
    ):
        load_model(f"{tmp_path}/nothing")


@pytest.mark.parametrize("write", [save, save_folder], ids=["ckpt", "folder"])
def test_a_tokenizer_with_other_ids_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, write: Any) -> None:
    source = write(small_model(tokenizer), tokenizer, tmp_path / ("x.ckpt" if write is save else "x"))
    check_tokenizer(source, tokenizer)
    other = train_tokenizer(["class Other: pass\n"] * 3, 270)
    ours, theirs = other.get_vocab(), tokenizer.get_vocab()
    differing = sum(ours.get(token) != index for token, index in theirs.items())
    assert 0 < differing < 20
    message = f"data.tokenizer does not fit '{source}': {differing} of its {len(theirs)} tokens have other ids"
    with pytest.raises(ValueError, match=message):
        check_tokenizer(source, other)


def test_a_parent_without_a_mask_token_fits(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """As Qwen3's tokenizer, to which the mask is added as the next free id."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    mask = state["model"]["vocab"].pop("<|mask|>")
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] != mask]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    check_tokenizer(str(tmp_path), tokenizer)


@pytest.mark.parametrize("source", ["{}/nothing", "{}/nothing.ckpt", "{}"])
def test_no_tokenizer_at_all_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, source: str) -> None:
    source = source.format(tmp_path)
    with pytest.raises(ValueError, match=f"no (tokenizer|checkpoint) at '{source}'; give"):
        check_tokenizer(source, tokenizer)
