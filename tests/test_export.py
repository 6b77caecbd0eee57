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
from transformers import PreTrainedTokenizerFast

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
    main(checkpoint(model, tokenizer, tmp_path / "x.ckpt"), str(tmp_path / "deep" / "model"))
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


def test_a_bad_checkpoint_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint at"):
        main(str(tmp_path / "nothing.ckpt"), str(tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []
