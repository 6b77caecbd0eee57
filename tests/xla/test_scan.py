"""Layers scanned by the device are the layers one by one: values, gradients, names; and one program for all of them."""

import importlib.util
import re
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from coda.xla.scan import scan_layers
from tests.xla.programs import run_program

MODES = ["scanned", "recomputed"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("torchax")
    return run_program("-m", "tests.xla.scan", str(tmp_path_factory.mktemp("scan")), devices=4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_states_and_gradients_are_those_of_the_layers_one_by_one(results: dict[str, Any], mode: str) -> None:
    assert results[mode]["error"] < 1e-5
    assert results["moves"] > 0.1, "the batches are alike, so that a stale one would not be seen"


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_parameters_keep_their_names_and_caches_work(results: dict[str, Any], mode: str) -> None:
    assert results[mode]["names"]
    assert results[mode]["cached"] < 1e-5


@pytest.mark.slow
def test_four_layers_are_no_more_products_than_two(results: dict[str, Any]) -> None:
    products = results["products"]
    assert products["loop"][1] > 1.9 * products["loop"][0]
    for mode in MODES:
        assert products[mode][0] == products[mode][1]
    assert products["recomputed"][0] > products["scanned"][0], "nothing is computed again"


@pytest.mark.slow
def test_named_results_go_to_the_host_and_come_back(results: dict[str, Any]) -> None:
    """Once in the loop over all layers and once in the loop back; what is kept is not computed again."""
    offloaded, hidden = results["offloaded"], "f32[4,24,32]"
    nothing = offloaded[""]
    assert nothing == {"pinned_host": 0, "device": 0, "shapes": [], "products": nothing["products"], "hooks": 0}
    assert nothing["products"] == results["products"]["recomputed"][0]
    assert offloaded["input"] == nothing | {"pinned_host": 1, "device": 1, "shapes": [hidden]}
    both = offloaded["input, self_attn"]
    assert both["pinned_host"] == both["device"] == 2 and both["shapes"] == [hidden]
    assert both["products"] == nothing["products"] - 1, "that of o_proj"
    parts = offloaded["self_attn.q_proj, mlp.up_proj"]
    assert parts["pinned_host"] == parts["device"] == 2 and parts["shapes"] == [hidden, "f32[4,24,48]"]
    assert parts["products"] == nothing["products"] - 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no loop", r"offload is \['input'\], but scan_layers is false"),
        ("no TPU", r"offload is \['input'\], but PJRT_DEVICE is CPU"),
        ("no recomputation", "offload needs gradient_checkpointing"),
        (
            "no such part",
            "has 'attention', which is no part of a layer.*choose among input, self_attn, self_attn.q_proj",
        ),
        ("twice", "has 'input', which .* is there twice"),
    ],
)
def test_what_cannot_be_kept_on_the_host_is_refused(results: dict[str, Any], case: str, message: str) -> None:
    assert re.search(message, results["refused"][case]), results["refused"][case]


@pytest.mark.slow
def test_a_fit_with_scanned_layers_has_the_losses_of_plain_training(results: dict[str, Any]) -> None:
    assert results["fit"] == pytest.approx(results["plain fit"], abs=1e-5)
    assert results["fit"][0] != results["fit"][-1]


def test_missing_libraries_are_named_with_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchax" else object())
    with pytest.raises(ValueError, match=r"scan_layers needs torchax, not installed here: pip install"):
        scan_layers(SimpleNamespace(model=SimpleNamespace(layers=nn.ModuleList())))  # type: ignore[arg-type]
