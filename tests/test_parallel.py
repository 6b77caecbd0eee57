"""DDP and FSDP2 on two processes: the losses, metrics and weights of one process; checkpoints that go on exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from coda.parallel import FSDP2Strategy
from tests.conftest import Tiny
from tests.ranks import fit, run

pytestmark = pytest.mark.slow
LOGGED = ("train/loss", "train/gradient_norm", "val/bound", "samples/infilling_exact_match", "samples/parses")


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name} {text}"
        )


@pytest.mark.parametrize(("strategy", "optimizer"), [("ddp", "adamw"), ("fsdp2", "adamw"), ("fsdp2", "adafactor")])
def test_two_processes_train_as_one_does(corpus: Path, tmp_path: Path, strategy: str, optimizer: str) -> None:
    """With accumulation, clipping, validation and sampling; the shares of some weights are unequal."""
    settings = {"corpus": corpus, "optimizer": optimizer, "count": True}
    one = fit({**settings, "strategy": "one", "folder": tmp_path / "one"})
    two = run(**settings, strategy=strategy, folder=tmp_path)
    assert_close(two["weights"], one["weights"], 1e-5)
    for name in LOGGED:
        assert two["logged"][name] == pytest.approx(one["logged"][name], rel=1e-5), name
    blocked, synced = two["traffic"][::2], two["traffic"][1::2]
    assert len(blocked) == len(synced) == 4
    assert set(blocked) == {0}
    if strategy == "fsdp2":  # two layers and the rest; what DDP sends is not seen from Python
        assert set(synced) == {3}


@pytest.fixture
def run_fsdp2(corpus: Path, tmp_path: Path) -> Any:
    def start(folder: str, **settings: Any) -> dict[str, Any]:
        (tmp_path / folder).mkdir(exist_ok=True)
        defaults = {"corpus": corpus, "optimizer": "adafactor", "strategy": "fsdp2", "folder": tmp_path / folder}
        return run(**{**defaults, **settings})

    return start


@pytest.mark.parametrize("untied", [False, True])
def test_a_sharded_checkpoint_goes_on_exactly(run_fsdp2: Any, tmp_path: Path, untied: bool) -> None:
    """Bit for bit, also with a head of its own; one that would be tied again is refused."""
    whole = run_fsdp2("whole", untied=untied)
    checkpoint = tmp_path / "whole" / "step=2.ckpt"
    assert {".metadata", "meta.pt"} <= {path.name for path in checkpoint.iterdir()}
    assert not list((tmp_path / "whole").glob(".*"))
    rest = run_fsdp2("rest", untied=untied, resume=checkpoint)
    assert_close(rest["weights"], whole["weights"], 0.0)
    for name in ("train/loss", "train/gradient_norm"):
        assert rest["logged"][name] == whole["logged"][name][2:]
    head, embedding = (rest["weights"][f"backbone.{name}.weight"] for name in ("lm_head", "model.embed_tokens"))
    assert torch.equal(head, embedding) is not untied
    if untied:
        with pytest.raises(AssertionError, match="has an output head of its own"):
            run_fsdp2("tied", resume=checkpoint)


def test_one_process_goes_on_with_a_checkpoint_in_one_file(run_fsdp2: Any, corpus: Path, tmp_path: Path) -> None:
    whole = run_fsdp2("whole", sharding={"save_distributed_checkpoint": False}, optimizer="adamw")
    checkpoint = tmp_path / "whole" / "step=2.ckpt"
    assert checkpoint.is_file()
    settings = {"corpus": corpus, "folder": tmp_path / "one", "optimizer": "adamw", "resume": checkpoint}
    rest = fit({**settings, "strategy": "one"})
    assert_close(rest["weights"], whole["weights"], 1e-5)


@pytest.fixture
def one(corpus: Path, tmp_path: Path) -> dict[str, Any]:
    """What one process gives."""
    return fit({"corpus": corpus, "optimizer": "adamw", "strategy": "one", "folder": tmp_path / "one"})


def test_weights_gathered_in_bfloat16_train_nearly_alike(run_fsdp2: Any, one: dict[str, Any]) -> None:
    rounded = run_fsdp2("rounded", optimizer="adamw", sharding={"gather_dtype": "bfloat16"}, precision="bf16-mixed")
    assert {value.dtype for value in rounded["weights"].values()} == {torch.float32}
    assert rounded["logged"]["train/loss"] == pytest.approx(one["logged"]["train/loss"], rel=0.02)
    assert rounded["logged"]["train/loss"] != pytest.approx(one["logged"]["train/loss"], rel=1e-5)


def test_compiled_and_checkpointed_layers_are_sharded_too(run_fsdp2: Any, one: dict[str, Any]) -> None:
    fast = {"compile_layers": True, "gradient_checkpointing": "selective"}
    two = run_fsdp2("fast", optimizer="adamw", backbone=fast)
    assert_close(two["weights"], one["weights"], 5e-5)


@pytest.mark.parametrize("there", [[], ["meta.pt"]])
def test_a_checkpoint_that_is_not_whole_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str]
) -> None:
    for name in there:
        (tmp_path / name).touch()
    strategy = FSDP2Strategy()
    monkeypatch.setattr(strategy, "broadcast", lambda value: value)
    with pytest.raises(ValueError, match=r"^no checkpoint at|it lacks \.metadata"):
        strategy.load_checkpoint(tmp_path)


def test_strategies_that_would_not_shard_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"coda\.parallel\.FSDP2Strategy"):
        tiny.trainer(strategy=ModelParallelStrategy(1, 1), logger=False, max_steps=1).fit(tiny.module(), tiny.data())
