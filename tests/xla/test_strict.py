"""From the third step on nothing is compiled and nothing waits for the device, but on logging steps."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.xla.programs import run_program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place: Path = tmp_path_factory.mktemp("strict")
    return run_program("-m", "tests.xla.strict", str(place), devices=4)


@pytest.mark.parametrize("case", ["adamw", "adafactor", "accumulation"])
@pytest.mark.parametrize("what", ["compiled", "fetched"])
def test_steps_run_what_is_there_and_wait_for_nothing(runs: dict[str, Any], case: str, what: str) -> None:
    counts = runs[case][what]
    assert len(counts) == 16
    new = [after - before for before, after in pairwise(counts)]
    for step, count in enumerate(new):
        if step >= 2 and (step + 1) % 5:
            assert count == 0, (step, new)
    assert new[0] > 0 if what == "compiled" else new[4] > 0, "counts that never move would say nothing"


def test_a_hidden_wait_raises(runs: dict[str, Any]) -> None:
    assert "Unexpected execution" in runs["peek"]
