"""The arithmetic of docs/scaling.md: the page is what the command prints, and its parts are what they are said to be."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.chips import MACHINES
from benchmarks.scaling import CONFIGS, MODEL, Job, choose, main, plan, plans, read_job, report
from coda.model import CoDAConfig, CoDALanguageModel

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def stage1(monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(REPOSITORY)
    return read_job(CONFIGS[0], MODEL)


def test_the_page_has_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    main()
    page = (REPOSITORY / "docs" / "scaling.md").read_text()
    assert page.split("<!-- begin scaling -->\n")[1].split("\n<!-- end")[0] == capsys.readouterr().out.strip()


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_of_the_model_but_for_its_norms(tied: bool) -> None:
    config = CoDAConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=3, head_dim=16, tie_word_embeddings=tied
    )
    with torch.device("meta"):
        model = CoDALanguageModel(config)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    assert Job("", config, 1, 1, 1, 0.0).weights == matrices


def test_stage_1_on_512_chips_by_hand(stage1: Job) -> None:
    assert (stage1.rows, stage1.length, stage1.steps, stage1.state) == (512, 8192, 50_000, 0.0)
    one = plan(stage1, MACHINES["v4-1024"], "sharded", "none", 1, 1)
    assert one.flops == pytest.approx(8192 * 15.96e9, rel=1e-3)
    gpu = plan(stage1, MACHINES["8xH200"], "sharded", "none", 1, 64)
    assert gpu.flops == pytest.approx(64 * 8192 * 15.02e9, rel=1e-3)  # less half of the head
    assert one.compute == pytest.approx(one.flops / 275e12 / 0.69)
    gigabytes = 1.7204 * (2 + 2 + 4) * 511 / 512
    assert one.traffic / 1e9 == pytest.approx(gigabytes, rel=1e-3)
    assert one.network == pytest.approx(gigabytes / 270, rel=1e-3)
    assert plan(stage1, MACHINES["v4-1024"], "sharded", "full", 1, 1).compute == pytest.approx(
        one.compute * 1.293, rel=1e-2
    )
    # Per layer and token: 3 x 2048 float32; 22528 of products, 2 x 2048, 2 x 3072 and 2 x 6144 in bf16. 28 layers and one.
    assert one.activations == pytest.approx(8192 * 29 * (4 * 6144 + 2 * 45056))


def test_the_choice_fits_and_nothing_that_fits_is_faster(stage1: Job) -> None:
    for machine in MACHINES.values():
        best = choose(stage1, machine)
        assert best is not None
        assert best.rows * best.micro_batches * machine.count == stage1.rows
        assert best.total <= 0.9 * machine.chip.memory
        faster = [one for one in plans(stage1, machine) if one.seconds < best.seconds - 1e-3]
        assert all(one.total > 0.9 * machine.chip.memory for one in faster)


def test_a_machine_too_small_is_said_to_be(stage1: Job) -> None:
    machine = MACHINES["8xH200"]
    small = replace(machine, chip=replace(machine.chip, memory=8e9))
    assert "nothing fits" in report([stage1], {"small": small})


def test_an_unknown_machine_is_one_line() -> None:
    with pytest.raises(SystemExit, match="known are v4-1024"):
        main(machines=["v9"])
