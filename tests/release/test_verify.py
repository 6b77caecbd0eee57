"""The check in a clean process: it passes what is right, and stops what is not before the folder gets its name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

import coda.export
from coda.checkpoint import load_model
from coda.data.tokenizer import train_tokenizer
from coda.export import main
from coda.release.layout import write_files
from tests.test_export import TEXT, checkpoint, small_model

pytestmark = pytest.mark.slow  # each starts a process that imports transformers


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([TEXT] * 3, 270)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["coda", "released"])
def test_a_good_folder_passes(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, dtype: Any, layout: Any) -> None:
    source = checkpoint(small_model(tokenizer), tokenizer, tmp_path / "x.ckpt")
    main(source, str(tmp_path / "model"), dtype=dtype, layout=layout, max_shard_size="4KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2
    loaded, _ = load_model(str(tmp_path / "model"))
    assert loaded.dtype == getattr(torch, dtype or "float32")


def spoil_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = 1.01 * weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def lose_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_code(folder: Path) -> None:
    code = folder / "modeling_coda.py"
    code.write_text(code.read_text().replace("self.lm_head(hidden)", "2 * self.lm_head(hidden)"))


def need_this_package(folder: Path) -> None:
    code = folder / "modeling_coda.py"
    code.write_text("import coda.files\n" + code.read_text())


def lose_code(folder: Path) -> None:
    (folder / "selection_coda.py").unlink()


def lose_the_masked_class(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]["AutoModelForMaskedLM"]
    (folder / "config.json").write_text(json.dumps(config))


def spoil_tokenizer(folder: Path) -> None:
    train_tokenizer(["class Other: pass\n"] * 3, 270).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weights, "AutoModel gives other logits of the exported folder than its source: they differ by"),
        (spoil_code, "AutoModel gives other logits of the exported folder than its source: they differ by"),
        (lose_a_weight, "does not load in a process without this package: .*lacks 1 weights"),
        (need_this_package, "does not load in a process without this package"),
        (lose_code, "does not load in a process without this package: .*selection_coda"),
        (lose_the_masked_class, "does not load in a process without this package: Model type should be one of"),
        (spoil_tokenizer, "the exported tokenizer differs from its source: tokens"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_spoilt_folder_leaves_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, spoil: Any, message: str
) -> None:
    def write_and_spoil(*arguments: Any) -> None:
        write_files(*arguments)
        spoil(arguments[2])

    monkeypatch.setattr(coda.export, "write_files", write_and_spoil)
    source = checkpoint(small_model(tokenizer), tokenizer, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=message):
        main(source, str(tmp_path / "model"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]
