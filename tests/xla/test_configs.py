"""The overlays of TPUs: as many devices as the machine has chips, whole rows for each, and accepted by the command line."""

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.chips import MACHINES
from coda.xla import XLASPMDStrategy
from coda.xla.attention import fills_blocks
from tests.xla.programs import ROOT, run_program

CONFIGS = ROOT / "configs"
CHIPS = {"tpu_v4_8": 4} | {
    f"tpu_{name.replace('-', '_')}": machine.count for name, machine in MACHINES.items() if name.startswith("v")
}
REPORTED = {"tpu_v4_1024": "stage1", "tpu_v4_512": "stage2"}  # where the report ran what


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", CHIPS)
def test_the_mesh_has_the_chips_and_each_has_whole_rows(name: str) -> None:
    trainer = read(CONFIGS / "trainer" / f"{name}.yaml")["trainer"]
    data = read(CONFIGS / "data" / f"{REPORTED.get(name, 'stage2')}.yaml")["init_args"]
    assert math.prod(trainer["strategy"]["init_args"]["mesh"].values()) == CHIPS[name]
    assert data["global_batch_size"] % (CHIPS[name] * trainer["accumulate_grad_batches"]) == 0
    assert trainer["val_check_interval"] == 1000 * trainer["accumulate_grad_batches"]
    assert fills_blocks(data["sequence_length"])


def test_all_overlays_of_tpus_say_the_same_but_for_the_machine() -> None:
    found = {path.stem: read(path) for path in (CONFIGS / "trainer").glob("tpu_*.yaml")}
    assert found.keys() == CHIPS.keys()
    for overlay in found.values():
        arguments = overlay["trainer"]["strategy"]["init_args"]
        assert arguments.keys() <= inspect.signature(XLASPMDStrategy).parameters.keys()
        del arguments["mesh"], overlay["trainer"]["accumulate_grad_batches"], overlay["trainer"]["val_check_interval"]
    assert all(overlay == found["tpu_v4_8"] for overlay in found.values())


@pytest.fixture(scope="module")
def made() -> Any:
    return run_program("-m", "tests.xla.configs", devices=4)


@pytest.mark.slow
def test_the_maps_divide_every_matrix_and_no_vector(made: Any) -> None:
    for name, axes in (("qwen3_fsdp", {"fsdp"}), ("qwen3_fsdp_tensor", {"fsdp", "tensor"})):
        for weight, spec in made["maps"][name].items():
            assert {axis for axis in spec if axis} == (axes if len(spec) > 1 else set()), weight


@pytest.mark.slow
def test_the_command_line_takes_them(made: Any) -> None:
    assert made["strategy"] == "XLASPMDStrategy"
    assert made["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert made["precision"] == "bf16-mixed"
    assert made["attention"] == "xla_pallas"
    assert "--xla_tpu_scoped_vmem_limit_kib=98304" in made["flags"]
    assert "--xla_enable_async_all_gather=true" in made["flags"]
