"""Twenty steps on every mesh have the losses of plain CPU training, without XLA."""

from pathlib import Path
from typing import Any

import pytest

from tests.xla.programs import run_program

pytestmark = pytest.mark.slow
FEATURES = ["accumulation", "adafactor", "checkpointing", "segments"]


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    place: Path = tmp_path_factory.mktemp("parity")
    several = run_program("-m", "tests.xla.parity", str(place), "1,4,1", "2,2,1", "1,2,2", devices=4)
    return several | run_program("-m", "tests.xla.parity", str(place), "1,1,1", "cpu")


@pytest.mark.parametrize("mesh", ["1,4,1", "2,2,1", "1,2,2", "1,1,1"])
@pytest.mark.parametrize("feature", FEATURES)
def test_losses_are_those_of_plain_training(losses: dict[str, dict[str, Any]], mesh: str, feature: str) -> None:
    expected = losses["cpu"][feature]
    assert len(expected) == 20
    assert losses[mesh][feature] == pytest.approx(expected, rel=0, abs=1e-5)


def test_features_change_the_losses(losses: dict[str, dict[str, Any]]) -> None:
    """Otherwise the comparison above would compare one thing four times. Recomputing alone must change nothing."""
    ends = {name: losses["cpu"][name][-1] for name in ("accumulation", "adafactor", "segments", "checkpointing")}
    assert len(set(ends.values())) == 4, ends
