"""The layout of the released models, both ways: theirs is read and written anew, ours is written for their code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedTokenizerFast

from coda.checkpoint import load_model
from coda.data.tokenizer import train_tokenizer
from coda.export import export, main
from coda.model import CoDALanguageModel, ScratchBackbone
from tests.model.test_loading import RELEASED_CONFIG, RELEASED_GENERATION
from tests.test_export import TEXT, small_model

IDS = torch.tensor([[7, 8, 3, 3, 9, 20], [11, 3, 30, 3, 3, 5]])
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([TEXT] * 3, 270)


def normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def rotated(x: Tensor, theta: float) -> Tensor:
    """Rotary positions of [B, heads, L, D]: pairs half a head apart turn by position / theta^(2i / D)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * theta ** -(torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)


def reference(folder: Path, ids: Tensor) -> Tensor:
    """Logits of a folder in the released layout from its bare files: the released architecture written down anew."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    heads, groups, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        part = {
            key.split(".", 3)[3]: value for key, value in weights.items() if key.startswith(f"model.layers.{layer}.")
        }
        y = normalised(x, part["input_layernorm.weight"], eps)
        q, k, v = (
            (y @ part[f"self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, config["head_dim"])).transpose(1, 2)
            for name in "qkv"
        )
        q, k = (
            rotated(normalised(z, part[f"self_attn.{name}_norm.weight"], eps), config["rope_theta"])
            for z, name in ((q, "q"), (k, "k"))
        )
        k, v = (z.repeat_interleave(heads // groups, dim=1) for z in (k, v))
        attention = (q @ k.transpose(-1, -2) / config["head_dim"] ** 0.5).softmax(-1)  # to both sides
        x = x + (attention @ v).transpose(1, 2).flatten(2) @ part["self_attn.o_proj.weight"].T
        y = normalised(x, part["post_attention_layernorm.weight"], eps)
        gated = F.silu(y @ part["mlp.gate_proj.weight"].T) * (y @ part["mlp.up_proj.weight"].T)
        x = x + gated @ part["mlp.down_proj.weight"].T
    return normalised(x, weights["model.norm.weight"], eps) @ weights[HEAD].T


@pytest.fixture
def released(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder as released: fields and generation settings of theirs, and a head that only the file knows of."""
    folder = tmp_path / "released"
    folder.mkdir()
    weights = {name: value.clone() for name, value in small_model(tokenizer).state_dict().items()}
    weights[HEAD] = 0.5 * torch.randn(weights[HEAD].shape, generator=torch.Generator().manual_seed(1))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": len(weights[HEAD]), "mask_token_id": 3}
    (folder / "config.json").write_text(json.dumps(RELEASED_CONFIG | sizes | {"rope_theta": 500}))
    (folder / "generation_config.json").write_text(json.dumps(RELEASED_GENERATION | {"mask_token_id": 3}))
    tokenizer.save_pretrained(folder)
    return folder


def logits(model: CoDALanguageModel) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_a_released_folder_computes_what_its_files_say(released: Path) -> None:
    found = logits(load_model(str(released))[0])
    torch.testing.assert_close(found, reference(released, IDS), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["coda", "released"])
def test_a_released_folder_is_written_anew(released: Path, tmp_path: Path, layout: Any) -> None:
    main(str(released), str(tmp_path / "again"), layout=layout, verify=False)
    again, _ = load_model(str(tmp_path / "again"))
    assert torch.equal(logits(again), logits(load_model(str(released))[0]))
    assert again.config.tie_word_embeddings is False
    assert (again.generation_config.alg, again.generation_config.steps) == ("origin", 10)
    code = json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"]
    assert {name.split(".")[0] for name in code.values()} == {"configuration_coda", "modeling_coda"}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_an_export_in_the_released_layout_is_what_their_code_reads(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, tied: bool
) -> None:
    model = small_model(tokenizer, tied)
    model.generation_config.steps = 7
    export(model, tokenizer, tmp_path / "model", layout="released")
    torch.testing.assert_close(reference(tmp_path / "model", IDS), logits(model), atol=2e-5, rtol=1e-5)
    assert model.config.tie_word_embeddings is tied, "the model that is exported was changed"
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("CoDA", ["CoDALanguageModel"])
    assert (config["attention_kernel"], config["rope_scaling"], config["torch_dtype"]) == (
        "flash_attention",
        None,
        "float32",
    )
    known = {*RELEASED_CONFIG, "bos_token_id", "eos_token_id"}
    assert config.keys() <= known, "fields that the released config does not have"
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (settings["steps"], settings["alg"], settings["mask_token_id"]) == (7, "entropy", 3)
    assert None not in settings.values()
    described = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert described["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert described["additional_special_tokens"] == ["<|im_start|>"]
    loaded, theirs = load_model(str(tmp_path / "model"))
    assert torch.equal(logits(loaded), logits(model))
    assert theirs.get_vocab() == tokenizer.get_vocab()
    assert theirs("<|im_start|>f<|mask|>")["input_ids"] == tokenizer("<|im_start|>f<|mask|>")["input_ids"]


def test_the_chat_template_is_where_their_tokenizer_looks(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([TEXT] * 3, 270)
    tokenizer.chat_template = "{{ messages[0].content }}"
    export(small_model(tokenizer), tokenizer, tmp_path / "model", layout="released")
    described = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert described["chat_template"] == "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shift": False}, "shift false, but the released code predicts the next token"),
        ({"hidden_size": 12}, "heads of 16 together, which the released code cuts to 12"),
        ({"rope": "linear"}, "rotary scaling linear, which the released code does not have"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_their_code_cannot_compute_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, change: dict[str, Any], message: str
) -> None:
    size = {"hidden_size": 16} | {name: value for name, value in change.items() if name == "hidden_size"}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 1}
    model = ScratchBackbone(**size, **heads).build(tokenizer)
    model.config.shift = change.get("shift", True)
    model.config.rope_parameters["rope_type"] = change.get("rope", "default")
    with pytest.raises(ValueError, match=f"--layout released does not fit this model, which has {message}"):
        export(model, tokenizer, tmp_path / "model", layout="released")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("automatic", [AutoModel, AutoModelForMaskedLM], ids=lambda value: value.__name__)
@pytest.mark.parametrize("layout", ["coda", "released"])
def test_with_this_package_no_code_of_the_folder_is_needed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, automatic: Any, layout: str
) -> None:
    export(small_model(tokenizer), tokenizer, tmp_path / "model", layout=layout)
    for code in (tmp_path / "model").glob("*.py"):
        code.unlink()
    assert type(automatic.from_pretrained(tmp_path / "model")) is CoDALanguageModel
