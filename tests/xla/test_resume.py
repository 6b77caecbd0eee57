"""A run goes on on another mesh as if it had never stopped, and elsewhere from the same files."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.xla.programs import run_program

pytestmark = pytest.mark.slow
CASES = ["sharded, adamw", "full, adamw", "sharded, adafactor", "sharded, pure bf16"]
WEIGHTS = 25  # 2 layers of 11, embedding, norm and tied head
PARAMETERS = WEIGHTS - 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, dict[str, Any]]:
    return run_program("-m", "tests.xla.resume", str(place), devices=4)


@pytest.mark.parametrize("case", CASES)
def test_the_second_half_is_that_of_an_unbroken_run(runs: dict[str, dict[str, Any]], case: str) -> None:
    run = runs[case]
    near = 2e-2 if "bf16" in case else 1e-5  # bfloat16 sums differ from mesh to mesh
    assert run["rest"] == pytest.approx(run["whole"][4:], rel=0, abs=near)
    assert len(run["rest"]) == 4


@pytest.mark.parametrize("case", CASES)
def test_everything_is_saved(runs: dict[str, dict[str, Any]], case: str) -> None:
    run = runs[case]
    assert run["weights"] == WEIGHTS and run["states"] == PARAMETERS
    vectors = 2 * 4 + 1
    expected = {"adamw": 3 * PARAMETERS}.get(case.split(", ")[1], 4 * (PARAMETERS - vectors) + 3 * vectors)
    assert run["values"] == expected
    assert len(set(run["random"])) == 1 and run["fresh"] not in run["random"]
    assert run["rates"] == pytest.approx([3e-3 * 0.8] * 2)  # step 4 of 8, 3 of them warm-up


def test_every_run_with_the_same_seed_begins_with_the_same_random_numbers(runs: dict[str, dict[str, Any]]) -> None:
    assert len({run["fresh"] for run in runs.values()}) == 1


def test_optimizer_states_stay_divided_and_in_their_format(runs: dict[str, dict[str, Any]]) -> None:
    for case in CASES:
        before, after = runs[case]["divided"]
        assert before > 0 and after > 0
        weights = "torch.bfloat16" if "bf16" in case else "torch.float32"
        assert runs[case]["formats"] == [f"{weights} torch.float32"]


def test_a_sharded_checkpoint_becomes_a_plain_one(runs: dict[str, dict[str, Any]], place: Path) -> None:
    from coda.xla.convert import main

    source, output = place / "sharded, adamw.ckpt", place / "plain.ckpt"
    main(str(source), str(output))
    plain = torch.load(output, weights_only=True)
    assert len(plain["state_dict"]) == WEIGHTS and len(plain["optimizer_states"][0]["state"]) == PARAMETERS
    assert plain["global_step"] == 4 and plain["optimizer_states"][0]["state"][0]["exp_avg"].dtype == torch.float32
    with pytest.raises(ValueError, match="exists already"):
        main(str(source), str(output))
    with pytest.raises(ValueError, match="no sharded checkpoint"):
        main(str(output), str(place / "other.ckpt"))


def test_a_plain_trainer_goes_on_from_it(runs: dict[str, dict[str, Any]], place: Path) -> None:
    run_again = run_program("-m", "tests.xla.elsewhere", str(place), str(place / "plain.ckpt"))
    assert run_again == pytest.approx(runs["sharded, adamw"]["whole"][4:], rel=0, abs=1e-5)


def test_missing_shards_are_named(runs: dict[str, dict[str, Any]], place: Path) -> None:
    from coda.xla.checkpointing import read_checkpoint

    broken = place / "broken.ckpt"
    shutil.copytree(place / "sharded, adamw.ckpt", broken)
    (shard,) = broken.glob("*.distcp")
    shard.unlink()
    with pytest.raises(ValueError, match=rf"lacks {shard.name}"):
        read_checkpoint(str(broken))
