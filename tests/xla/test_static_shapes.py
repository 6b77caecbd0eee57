"""From the third step on nothing is compiled and nothing waits for the device, whatever moves; losses are the CPU's."""

from typing import Any

import pytest

from tests.xla.programs import run_program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    """What each case did; the program ends with an error if anything but the step's own execution waits."""
    return run_program("tests/xla/static_shapes.py")


def test_nothing_is_compiled_from_the_third_step_on(cases: dict[str, Any]) -> None:
    assert len(cases) == 9
    for name, runs in cases.items():  # once annealing ends its program is that of random masking, compiled already
        assert len(set(runs["xla"]["compilations"][1:])) == 1, name


def test_losses_are_those_of_the_cpu(cases: dict[str, Any]) -> None:
    for name in cases.keys() - {"annealing"}:  # whose noise is the device's own
        runs = cases[name]
        assert runs["xla"]["losses"] == pytest.approx(runs["cpu"]["losses"], abs=2e-5), name


def test_windows_behind_the_capacity_are_needed_in_some_micro_batches_only(cases: dict[str, Any]) -> None:
    for name in ("random, capacity", "progressive, capacity"):
        overflow = cases[name]["xla"]["overflow"]
        assert overflow == cases[name]["cpu"]["overflow"]
        assert min(overflow) == 0 < sum(overflow)
