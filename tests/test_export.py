"""The exported folder: loads anywhere with transformers alone, whole or not at all."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from callbacks import ModelExport
from coda.checkpoint import RECORD, describe, load_model
from coda.data.tokenizer import train_tokenizer
from coda.export import export, main
from coda.model import CoDALanguageModel, ScratchBackbone

ROOT = Path(__file__).parents[1]
TEXT = "def f(x):\n    return x + 1\n"
IDS = [[7, 8, 3, 3, 9]]  # 3 is the mask
SETTINGS = {"max_new_tokens": 6, "temperature": 0.7, "top_p": 0.9, "seed": 1}
# Runs where this package cannot be imported; writes what each folder gives.
ELSEWHERE = f"""
import sys
sys.modules["coda"] = None
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer
output, *folders = sys.argv[1:]
ids, results = torch.tensor({IDS}), []
for folder in folders:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        result = {{"logits": model(ids).logits, "sequences": model.diffusion_generate(ids, **{SETTINGS})}}
    result["tokens"] = tokenizer({TEXT!r})["input_ids"]
    result["mask"] = tokenizer.mask_token_id
    result["class"] = type(model).__module__
    result["tied"] = model.lm_head.weight is model.model.embed_tokens.weight
    results.append(result)
torch.save(results, output)
"""


def run(arguments: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """Run Python without network and with a cache of its own."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=home, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([TEXT] * 3, 270)


def small_model(tokenizer: PreTrainedTokenizerFast, tied: bool = True) -> CoDALanguageModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.3}
    return ScratchBackbone(**sizes | heads, tie_word_embeddings=tied).build(tokenizer).eval()


def checkpoint(model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast, path: Path) -> str:
    weights = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": weights, RECORD: describe(model, tokenizer)}, path)
    return str(path)


@pytest.mark.slow
def test_the_folder_works_in_a_process_without_this_package(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    models = {"tied": small_model(tokenizer, tied=True), "untied": small_model(tokenizer, tied=False)}
    for name, model in models.items():
        export(model, tokenizer, tmp_path / name)
    output = tmp_path / "result.pt"
    done = run(["-I", "-c", ELSEWHERE, str(output), *(str(tmp_path / name) for name in models)], tmp_path)
    assert done.returncode == 0, done.stderr
    for (name, model), result in zip(models.items(), torch.load(output), strict=True):
        ids = torch.tensor(IDS)
        with torch.no_grad():
            torch.testing.assert_close(result["logits"], model(ids).logits, atol=1e-5, rtol=0.0)
        assert torch.equal(result["sequences"], model.diffusion_generate(ids, **SETTINGS))
        assert result["tokens"] == tokenizer(TEXT)["input_ids"]
        assert result["mask"] == tokenizer.mask_token_id
        assert result["class"].startswith("transformers_modules.")
        assert result["tied"] == (name == "tied")


@pytest.mark.slow
def test_the_command_exports_a_checkpoint(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model, output = small_model(tokenizer), tmp_path / "model"
    source = checkpoint(model, tokenizer, tmp_path / "x.ckpt")
    done = run(["-m", "coda.export", "--checkpoint", source, "--output", str(output)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"exported to {output}"
    loaded, _ = load_model(str(output))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_the_folder_ships_the_one_copy_of_model_and_sampler(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    export(small_model(tokenizer), tokenizer, tmp_path / "model")
    code = {path.name: path.read_bytes() for path in (tmp_path / "model").glob("*.py")}
    assert code == {path.name: path.read_bytes() for path in (ROOT / "coda" / "model").glob("*_coda.py")}


def test_the_config_is_that_of_the_released_models(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    export(small_model(tokenizer), tokenizer, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("CoDA", ["CoDALanguageModel"])
    model_class = "modeling_coda.CoDALanguageModel"
    code = {
        "AutoConfig": "configuration_coda.CoDAConfig",
        "AutoModel": model_class,
        "AutoModelForMaskedLM": model_class,
    }
    assert config["auto_map"] == code
    assert (config["mask_token_id"], config["shift"]) == (tokenizer.mask_token_id, True)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_folder_gives_the_same_model_here(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, tied: bool) -> None:
    model = small_model(tokenizer, tied)
    export(model, tokenizer, tmp_path / "model")
    loaded, _ = load_model(str(tmp_path / "model"))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied == loaded.config.tie_word_embeddings


def test_a_checkpoint_is_exported(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = small_model(tokenizer)
    main(checkpoint(model, tokenizer, tmp_path / "x.ckpt"), str(tmp_path / "deep" / "model"), verify=False)
    loaded, their_tokenizer = load_model(str(tmp_path / "deep" / "model"))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert their_tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_existing_output_is_refused_and_left_untouched(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    output = tmp_path / "model"
    kept = output / "notes.txt" if kind == "folder" else output
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(ValueError, match=f"--output {output} exists already; choose another folder"):
        export(small_model(tokenizer), tokenizer, output)
    assert kept.read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ValueError),
        (SafetensorError("I/O error: No space left on device (os error 28)"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["full disk", "full disk in safetensors", "interrupt"],
)
def test_a_failure_midway_leaves_nothing_behind(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
) -> None:
    def fail(folder: Any) -> None:
        assert (Path(folder) / "model.safetensors").is_file(), "fails before anything is written"
        raise error

    monkeypatch.setattr(tokenizer, "save_pretrained", fail)
    with pytest.raises(raised, match="" if raised is KeyboardInterrupt else "model could not be .* No space left"):
        export(small_model(tokenizer), tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Really: no file of the process may grow beyond 24 KB."""
    source = checkpoint(small_model(tokenizer), tokenizer, tmp_path / "x.ckpt")
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000)); from coda.export import main; "
        "from coda.command import one_line_errors\nwith one_line_errors(): main(*sys.argv[1:])"
    )
    done = run(["-c", limited, source, str(tmp_path / "model")], tmp_path)
    assert done.returncode == 1
    message = f"error: --output {tmp_path / 'model'} could not be written, and nothing of it is left: "
    assert done.stderr.splitlines()[-1].startswith(message), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize("where", ["x.ckpt", "/proc"], ids=["below a file", "not writable"])
def test_a_folder_that_cannot_be_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, where: str) -> None:
    (tmp_path / "x.ckpt").write_text("mine")
    output = tmp_path / where / "model"
    with pytest.raises(ValueError, match=f"--output {output} could not be written, and nothing of it is left"):
        export(small_model(tokenizer), tokenizer, output)
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_tokenizer_with_another_mask_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = small_model(tokenizer)
    model.config.mask_token_id = 17
    message = (
        r"its mask_token_id is 17 in a vocabulary of 320, its tokenizer's is 3; .* the tokenizer that it was trained"
    )
    with pytest.raises(ValueError, match=message):
        export(model, tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "gguf"}, "layout is gguf; choose one of coda, released"),
        ({"max_shard_size": "5"}, "max_shard_size is 5; give a number of KB, MB, GB or TB, for example 5GB"),
        ({"max_shard_size": "-1GB"}, "max_shard_size is -1GB; give a number"),
    ],
)
def test_a_setting_that_does_not_fit_is_told_before_anything_is_loaded(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        main(str(tmp_path / "nothing.ckpt"), str(tmp_path / "model"), **settings)
    with pytest.raises(ValueError, match=message):
        ModelExport(**settings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cast", [None, "float16"])
def test_weights_keep_their_type_or_are_cast(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, dtype: str, cast: Any
) -> None:
    model = small_model(tokenizer).to(getattr(torch, dtype))
    main(checkpoint(model, tokenizer, tmp_path / "x.ckpt"), str(tmp_path / "model"), dtype=cast, verify=False)
    expected = getattr(torch, cast or dtype)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(value, model.state_dict()[key].to(expected)) for key, value in weights.items())
    assert {value.dtype for value in weights.values()} == {expected}


def test_weights_are_split_by_size(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    export(small_model(tokenizer), tokenizer, tmp_path / "model", max_shard_size="8KB")
    shards = [load_file(path) for path in (tmp_path / "model").glob("model-*-of-*.safetensors")]
    assert len(shards) > 2
    assert all(sum(value.nbytes for value in shard.values()) <= 8000 or len(shard) == 1 for shard in shards)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {key for shard in shards for key in shard}


def test_generation_settings_travel_with_a_checkpoint(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = small_model(tokenizer)
    model.generation_config.alg, model.generation_config.steps = "topk_margin", 9
    main(checkpoint(model, tokenizer, tmp_path / "x.ckpt"), str(tmp_path / "model"), verify=False)
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (settings["alg"], settings["steps"]) == ("topk_margin", 9)


def test_a_bad_checkpoint_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint at"):
        main(str(tmp_path / "nothing.ckpt"), str(tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []
