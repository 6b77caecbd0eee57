"""The package works without torch_xla; what needs it says how to install it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from callbacks import DiffusionMonitor
from callbacks.preemption import _clean
from coda.xla import ShardingMap, XLASPMDStrategy
from coda.xla.sharding import Spec

ROOT = Path(__file__).parents[2]


def missing(name: str, *_: Any) -> None:
    return None


def test_importing_the_package_does_not_import_torch_xla() -> None:
    program = "import sys, coda.xla, coda.xla.convert, callbacks; sys.exit('torch_xla' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_without_torch_xla_the_strategy_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    with pytest.raises(ValueError, match=r"torch_xla, which is not installed: pip install 'coda-diffusion\[tpu\]'"):
        XLASPMDStrategy()


def test_the_hardware_must_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: object())
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    with pytest.raises(ValueError, match=r"PJRT_DEVICE is not set.*PJRT_DEVICE=CPU CPU_NUM_DEVICES=4"):
        XLASPMDStrategy()


def mesh(**sizes: int) -> Any:
    return SimpleNamespace(shape=lambda: {"data": 1, "fsdp": 1, "tensor": 1} | sizes)


def specs(sharding: ShardingMap, *shape: int, **sizes: int) -> Spec:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(shape))
    return sharding.specs(model, mesh(**sizes))["weight"]


def test_the_default_divides_the_largest_dimension_that_can_be_divided() -> None:
    assert specs(ShardingMap(), 64, 32, fsdp=4) == ("fsdp", None)
    assert specs(ShardingMap(), 151_936, 2048, fsdp=512) == (None, "fsdp")
    assert specs(ShardingMap(), 30, 32, fsdp=4) == (None, "fsdp")
    assert specs(ShardingMap(), 30, 30, fsdp=4) == (None, None)
    assert specs(ShardingMap(), 64, fsdp=4) == (None,)


def test_the_first_pattern_that_fits_counts() -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(4, 8, bias=False)}), "c": nn.Linear(4, 8, bias=False)})
    sharding = ShardingMap({"a.*.weight": ["tensor", ["data", "fsdp"]], "*.weight": [None, "fsdp"]})
    found = sharding.specs(model, mesh(data=2, fsdp=2, tensor=2))
    assert found == {"a.b.weight": ("tensor", ("data", "fsdp")), "c.weight": (None, "fsdp")}


def test_a_star_is_one_part_of_a_name() -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(4, 8, bias=False)})})
    with pytest.raises(ValueError, match=r"pattern '\*\.weight' that no name of the model fits"):
        ShardingMap({"*.weight": [None, "fsdp"]}).specs(model, mesh(fsdp=2))


def test_unknown_axes_are_refused_before_there_is_a_model() -> None:
    with pytest.raises(ValueError, match=r"sharding.activations\['model.norm'\].*'model' is no axis"):
        ShardingMap(activations={"model.norm": ["model", None, None]})


def test_monitors_add_up_ranks_only_where_each_has_a_tensor_of_its_own() -> None:
    for replicas in (1, 2):
        monitor = DiffusionMonitor()
        trainer = SimpleNamespace(strategy=SimpleNamespace(replicas=replicas), world_size=2)
        monitor.on_fit_start(trainer, SimpleNamespace(device=torch.device("cpu")))
        assert monitor.statistics.sync_on_compute == monitor.statistics._to_sync == (replicas == 2)


def test_a_checkpoint_that_was_not_replaced_yet_is_kept(tmp_path: Path) -> None:
    for name in (".last.ckpt.old", ".step=1.ckpt.unfinished", ".step=2.ckpt.old", "step=2.ckpt"):
        (tmp_path / name).mkdir()
    for unfinished in sorted(tmp_path.glob(".*.ckpt.*")):
        _clean(unfinished)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step=2.ckpt"]
