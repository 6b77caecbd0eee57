"""What the strategy refuses before anything is compiled, what it says of hosts and slices, formats, and recomputation."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.xla.programs import run_program

pytestmark = pytest.mark.slow
REFUSED = {
    "mesh of 3": r"mesh is \{'fsdp': 3\}, 1 x 3 x 1, but there are 4 devices",
    "mesh of 8": "2 x 4 x 1, but there are 4 devices",
    "unknown axis": "axis 'expert'; the axes are data, fsdp, tensor",
    "two open axes": "-1 to at most one axis",
    "two slices": "slices is .* but there are 1 slices",
    "half precision": "precision is 16-true; choose one of 32-true, bf16-mixed, bf16-true",
    "rows": "6 rows, which the mesh's 4 devices along data x fsdp do not divide; change data.global_batch_size",
    "rows of a micro-batch": "2 rows, which .* trainer.accumulate_grad_batches",
    "heads": "4 devices along tensor, which do not divide the model's 2 num_key_value_heads",
    "precision twice": "trainer.precision is bf16-mixed, but .*precision is 32-true; set trainer.precision to null",
    "compiled layers": "compile_layers is true, but on XLA devices .* set it to false",
    "selective": "gradient_checkpointing is selective, .* and trainer.strategy.init_args.gradient_checkpointing to true",
    "compiled loss": "compile_loss is true, but on XLA devices .* set it to false",
    "capacity": "capacity_rows is 4, but each device has 2 rows of a micro-batch; choose a divisor",
    "lengths": "canvas_multiple is 16, with which each host would have rows of another length; set it to null",
    "idle axis": "2 devices along tensor, but no weight is divided .*qwen3_fsdp_tensor.yaml, or tensor to 1",
    "sampler": "use_distributed_sampler is true, .* would shuffle them; set it to false",
    "device statistics": "callbacks has a DeviceStatsMonitor, .* take it out",
    "torch's Adafactor": "model.optimizer is torch.optim.Adafactor, which waits .* set it to transformers.Adafactor",
    "fused": "`fused=True` requires all the params to be",
    "two devices": "trainer.devices is 2, .* set it to auto",
    "pattern": "pattern 'model.layer' that no name of the model fits",
    "dimensions": r"model.norm.weight 2 dimensions, but it has \[32\]",
    "odd length": "divides 30 of model.embed_tokens.weight .* over fsdp, which has 4 devices",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place: Path = tmp_path_factory.mktemp("rules")
    flags = f"--xla_dump_to={place / 'dumps'} --xla_dump_hlo_as_text"
    return run_program("-m", "tests.xla.rules", str(place), devices=4, flags=flags)


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(results: dict[str, Any], case: str) -> None:
    assert re.search(REFUSED[case], results["refused"][case]), results["refused"][case]


def test_ranks_are_those_of_the_hosts(results: dict[str, Any]) -> None:
    for host in range(4):
        world_size, rank, local, first, replicas = results["places"][f"host {host}"]
        assert (world_size, rank, local, first, replicas) == (4, host, 0, host == 0, 1)


def test_hosts_read_rows_of_their_own_or_all_the_same(results: dict[str, Any]) -> None:
    own = results["places"]["rows"]
    assert sorted(row for rows in own for row in rows) == list(range(32))
    assert [rows[:2] for rows in own] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert results["places"]["shared rows"] == [list(range(8))] * 4
    assert "the hosts do not agree on the rows of a batch" in results["other rows"]


def test_slices_are_joined_along_their_axis(results: dict[str, Any]) -> None:
    slices = results["slices"]
    assert slices["shape"] == [2, 8, 1]
    halves = [sorted(chip for (chip,) in half) for half in slices["halves"]]
    assert halves == [list(range(8)), list(range(8, 16))]
    assert "there are 2 slices" in slices["wrong"]
    assert slices["single"] == [1, 16, 1]
    assert "data has 1 devices in all" in slices["uneven"]


def test_activations_are_divided_by_rows_and_heads(results: dict[str, Any]) -> None:
    assert results["divided"]["2,2,1"]["layer"].startswith("{devices=[4,1,1]")
    assert results["divided"]["1,2,2"]["layer"].startswith("{devices=[2,1,1,2]")
    assert results["divided"]["1,2,2"]["projection"].startswith("{devices=[2,1,2]")


def test_formats(results: dict[str, Any]) -> None:
    single, half = "torch.float32", "torch.bfloat16"
    same = {"rotary": single, "tied": "True", "XLA_USE_BF16": "unset"}
    weights = ("weight", "gradient", "norm", "layer")
    for precision, stored, computed in (
        ("32-true", single, single),
        ("bf16-mixed", single, half),
        ("bf16-true", half, half),
    ):
        expected = same | dict.fromkeys(weights, stored) | {"projection": computed}
        assert results["formats"][precision] == expected, precision


def test_gradient_checkpointing_recomputes_the_layers(results: dict[str, Any]) -> None:
    """In each of two layers 8 of its 9 matrix products: the last one's result is not needed."""
    assert results["products"]["True"] - results["products"]["False"] == 2 * 8


def test_the_model_comes_back_as_it_was(results: dict[str, Any]) -> None:
    names = results["names"]
    assert len(names["names"]) == 25 and "backbone.model.layers.1.mlp.up_proj.weight" in names["names"]
    assert names["tied"] and names["device"] == "cpu" and names["hooks"] == 0


def test_an_export_has_all_weights_and_tied_ones_once(results: dict[str, Any]) -> None:
    assert results["names"]["exported"] == {"equal": True, "tied": True, "devices": ["cpu"]}


def test_testing_and_predicting_are_those_of_the_cpu(results: dict[str, Any]) -> None:
    there, here = results["names"]["elsewhere"]["there"], results["names"]["elsewhere"]["here"]
    assert there["bound"] == pytest.approx(here["bound"], abs=1e-5)
    assert there["sequences"] == here["sequences"]


def test_speed_is_that_of_all_rows_over_all_chips(results: dict[str, Any]) -> None:
    """Of 8 rows of 32 tokens in two seconds, on four chips; what no one knows about a chip ends no run."""
    known, unknown, peaks = (results["speeds"][name] for name in ("known", "unknown", "peaks"))
    assert peaks == {"v4": 4 * 275e12, "v5p": 4 * 459e12, "v9": None, "unreachable": None, "CPU": None}
    assert known["throughput/tokens_per_sec"] == unknown["throughput/tokens_per_sec"] == 8 * 32 / 2
    assert known["throughput/mfu"] == pytest.approx(known["flops"] / 2 / (4 * 275e12))
    assert "throughput/mfu" not in unknown


def test_sigterm_writes_a_sharded_checkpoint_and_leaves(results: dict[str, Any]) -> None:
    assert results["preempted"] == {"code": 75, "steps": 3, "left": False}
