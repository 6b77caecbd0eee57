"""Sharded checkpoints: what several processes wrote is read as one, and what is missing of it is named."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import save
from transformers import PreTrainedTokenizerFast

from coda import sharded
from coda.checkpoint import check_tokenizer, describe, find_last, load_model, load_weights, read_checkpoint, read_config
from coda.data.tokenizer import train_tokenizer
from coda.export import main as export_main
from coda.model import CoDALanguageModel
from tests.test_export import TEXT, small_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([TEXT] * 3, 270)


def write(folder: Path, model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast, entry: str = "state_dict") -> str:
    """What a strategy that shards writes, from one process; with the optimizer's state, which nobody here needs."""
    weights = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    moments = {name: {"exp_avg": torch.ones(3)} for name in weights}
    save({entry: weights, "optimizer_0": {"state": moments}}, checkpoint_id=folder, no_dist=True)
    torch.save({"coda": describe(model, tokenizer), "global_step": 7}, folder / "meta.pt")
    return str(folder)


@pytest.mark.parametrize("entry", ["state_dict", "model"], ids=["ModelParallelStrategy", "FSDPStrategy"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_folder_is_read_as_a_file_is(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, entry: str, tied: bool
) -> None:
    model = small_model(tokenizer, tied)
    path = write(tmp_path / "last.ckpt", model, tokenizer, entry)
    loaded, theirs = load_model(path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert theirs.get_vocab() == tokenizer.get_vocab()
    assert read_config(path).hidden_size == 16
    check_tokenizer(path, tokenizer)
    other = small_model(tokenizer, tied)
    torch.nn.init.zeros_(other.model.norm.weight)
    load_weights(other, path)
    assert torch.equal(other.model.norm.weight, model.model.norm.weight)
    assert read_checkpoint(path)["global_step"] == 7
    assert find_last([tmp_path]) == tmp_path / "last.ckpt"


def test_any_name_will_do(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    assert load_model(write(tmp_path / "step-7", small_model(tokenizer), tokenizer))[0].config.hidden_size == 16


def test_optimizer_states_stay_on_disk(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    load = sharded.load
    monkeypatch.setattr(sharded, "load", lambda state, **options: (asked.extend(state), load(state, **options)))
    load_model(write(tmp_path / "x.ckpt", small_model(tokenizer), tokenizer))
    assert asked == ["state_dict"]


@pytest.mark.parametrize("name", [".metadata", "meta.pt"])
def test_an_unfinished_one_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    path = write(tmp_path / "x.ckpt", small_model(tokenizer), tokenizer)
    (tmp_path / "x.ckpt" / name).unlink()
    with pytest.raises(
        ValueError, match=f"'{path}' is an unfinished sharded checkpoint: it lacks {name}; take another"
    ):
        load_model(path)


@pytest.mark.parametrize("read", [load_model, read_config, read_checkpoint], ids=lambda read: read.__name__)
def test_missing_shards_are_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, read: Any) -> None:
    path = write(tmp_path / "x.ckpt", small_model(tokenizer), tokenizer)
    (tmp_path / "x.ckpt" / "__0_0.distcp").unlink()
    with pytest.raises(
        ValueError, match=f"the sharded checkpoint '{path}' lacks __0_0.distcp; copy the files that all"
    ):
        read(path)
    assert find_last([tmp_path]) is None


def test_a_shard_that_was_cut_short_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "x.ckpt", small_model(tokenizer), tokenizer)
    shard = tmp_path / "x.ckpt" / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"was cut short in __0_0\.distcp"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", [".metadata", "meta.pt", "__0_0.distcp"])
def test_a_damaged_file_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    path = write(tmp_path / "x.ckpt", small_model(tokenizer), tokenizer)
    file = tmp_path / "x.ckpt" / name
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(ValueError, match=f"'{path}' is no readable checkpoint: "):
        load_model(path)


def test_one_that_something_else_wrote_is_named(tmp_path: Path) -> None:
    save({"state_dict": {"weight": torch.ones(2)}}, checkpoint_id=tmp_path, no_dist=True)
    torch.save({}, tmp_path / "meta.pt")
    with pytest.raises(ValueError, match=r"was not written by coda\.module\.DiffusionModule"):
        load_model(str(tmp_path))


class Payload:
    """Runs code when unpickled carelessly."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called


@pytest.mark.parametrize("name", [".metadata", "meta.pt"])
@pytest.mark.parametrize("way", ["path", "system", "attribute"])
def test_code_in_it_is_not_run(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str, way: str) -> None:
    path = write(tmp_path / "x.ckpt", small_model(tokenizer), tokenizer)
    marker = tmp_path / "owned"
    payload = pickle.dumps(Payload(*((Path.touch, marker) if way == "path" else (os.system, f"touch {marker}"))))
    if way == "attribute":  # of a module that is allowed
        payload = pickle.dumps(Payload(os.system, f"touch {marker}"), protocol=4)
        payload = payload.replace(
            b"\x8c\x05posix\x94\x8c\x06system", b"\x8c\x27torch.distributed.checkpoint.filesystem\x94\x8c\x09os.system"
        )
        assert b"os.system" in payload
        payload = payload[:2] + payload[11:]  # without the frame, whose length has changed
    (tmp_path / "x.ckpt" / name).write_bytes(payload)
    with pytest.raises(ValueError, match="is no readable checkpoint"):
        load_model(path)
    assert not marker.exists()


@pytest.fixture(scope="module", params=["", "adapter"], ids=["weights", "adapter"])
def run(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A fit of two processes, each of which has half of every weight."""
    folder = tmp_path_factory.mktemp("sharded")
    program = Path(__file__).with_name("release") / "fit_sharded.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(program), str(corpus), str(folder), request.param]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, request.param


@pytest.mark.slow
def test_the_weights_of_two_processes_are_put_together(run: tuple[Path, str]) -> None:
    """In the checkpoint, and in the export at the end of the fit."""
    folder, adapter = run
    checkpoint = folder / "checkpoints" / "last.ckpt"
    assert len(list(checkpoint.glob("*.distcp"))) == 2
    read, exported = load_model(str(checkpoint))[0].state_dict(), load_model(str(folder / "export"))[0].state_dict()
    expected = torch.load(folder / "weights.pt")
    assert read.keys() == exported.keys()
    assert all(torch.equal(read[name], exported[name]) for name in read)
    kept = {name.replace(".base_layer", ""): value for name, value in expected.items() if "lora_" not in name}
    assert kept.keys() == read.keys()
    changed = {name for name, value in kept.items() if not torch.equal(value, read[name])}
    assert changed == ({name for name in kept if "proj" in name} if adapter else set())


@pytest.mark.slow
def test_it_is_exported_by_the_command(run: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = run
    export_main(str(folder / "checkpoints" / "last.ckpt"), str(tmp_path / "model"), verify=False)
    exported, expected = load_model(str(tmp_path / "model"))[0], load_model(str(folder / "export"))[0]
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in exported.state_dict().items())
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| training | 2 | 4 x 32 | 256 |" in card


@pytest.mark.slow
def test_a_process_whose_file_is_missing_is_named(run: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = run
    for file in (folder / "checkpoints" / "last.ckpt").iterdir():
        if file.name != "__1_0.distcp":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"lacks __1_0\.distcp; copy the files"):
        export_main(str(tmp_path), str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()
