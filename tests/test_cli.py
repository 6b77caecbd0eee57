"""The command line: every config, every idiom of the README, every kind of bad setting."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main as entry  # also registers the short class names
from coda.cli import CodaCLI
from coda.masking import BlockMasking, PerEpoch, ProgressiveMasking
from coda.model import PretrainedBackbone, ScratchBackbone
from coda.module import DiffusionModule

REPOSITORY = Path(__file__).resolve().parent.parent
STAGES = ["stage1.yaml", "stage2.yaml", "quickstart.yaml"]
REHEARSAL = ["--config", "stage2.yaml", "--config", "rehearsal.yaml"]


def cli(*args: str) -> CodaCLI:
    """Parse and instantiate, run nothing."""
    return CodaCLI(DiffusionModule, args=list(args), run=False)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("overlay", [[], ["--config", "rehearsal.yaml"]])
def test_every_config_instantiates(stage: str, overlay: list[str]) -> None:
    made = cli("--config", stage, *overlay)
    assert isinstance(made.model, DiffusionModule)
    assert made.datamodule.global_batch_size in (8, 32, 256, 512)


@pytest.mark.parametrize("overlay", sorted((REPOSITORY / "configs" / "trainer").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_trainer_overlay_instantiates(overlay: Path) -> None:
    if overlay.stem.startswith(("tpu", "xla")):
        pytest.skip("needs XLA devices: tests/xla")
    made = cli("--config", "stage2.yaml", "--config", str(overlay))
    assert made.datamodule.global_batch_size % made.trainer.accumulate_grad_batches == 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_printed_config_parses_back_to_itself(stage: str, tmp_path: Path) -> None:
    first = cli("--config", stage)
    printed = first.parser.dump(first.config, skip_none=False)
    (tmp_path / "again.yaml").write_text(printed)
    again = cli("--config", str(tmp_path / "again.yaml"))
    assert again.parser.dump(again.config, skip_none=False) == printed


@pytest.mark.parametrize("section", sorted((REPOSITORY / "configs" / "masking").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_masking_section_can_be_swapped_in(section: Path) -> None:
    wanted = yaml.safe_load(section.read_text())["class_path"]
    made = cli("--config", "quickstart.yaml", "--model.masking", str(section)).model.masking
    assert wanted == f"coda.masking.{type(made).__name__}"


@pytest.mark.parametrize("section", sorted((REPOSITORY / "configs" / "model").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_model_section_can_be_swapped_in(section: Path) -> None:
    made = cli("--config", "quickstart.yaml", "--model.backbone", str(section)).model.backbone_source
    assert isinstance(made, PretrainedBackbone if "pretrained" in section.stem else ScratchBackbone)


@pytest.mark.parametrize("section", sorted((REPOSITORY / "configs" / "adapter").glob("*.yaml")), ids=lambda p: p.stem)
@pytest.mark.parametrize("stage", ["stage3a.yaml", "stage3b.yaml"])
def test_every_adapter_section_can_be_swapped_in(section: Path, stage: str) -> None:
    made = cli("--config", stage, "--model.adapter", str(section)).model.adapter
    assert (made.use_dora, made.rank) == (section.stem == "dora", 16)


def test_short_class_names_and_arguments_swap_a_part() -> None:
    made = cli(*REHEARSAL, "--model.masking", "BlockMasking", "--model.masking.sizes=[2,4]").model.masking
    assert isinstance(made, BlockMasking)
    assert made.sizes == [2, 4]


def test_own_files_are_one_option_away() -> None:
    """The README's inline options."""
    options = [
        "--data.sources+=TextFiles",
        "--data.sources.paths=[my/repository]",
        "--data.tokenizer",
        "Qwen/Qwen3-1.7B",
    ]
    made = cli("--config", "quickstart.yaml", *options).datamodule
    assert [source.paths for source in made.sources] == [["my/repository"]]
    assert made.tokenizer_path == "Qwen/Qwen3-1.7B"


def test_stage2_carries_the_recipe_of_the_report() -> None:
    made = cli("--config", "stage2.yaml")
    masking = made.model.masking
    assert isinstance(masking, ProgressiveMasking)
    assert isinstance(masking.block, PerEpoch)
    table = [[s.values[epoch] for s in masking.schedules().values()] for epoch in range(5)]
    assert table == [[0.01, 0.01, 0.05], [0.05, 0.05, 0.1], [0.1, 0.1, 0.15], [0.15, 0.15, 0.2], [0.2, 0.2, 0.25]]
    optimizer = made.model.optimizer([{"params": [torch.nn.Parameter(torch.zeros(2, 2))]}])
    assert type(optimizer).__name__ == "Adafactor"
    assert optimizer.defaults["lr"] == 2e-4
    assert optimizer.defaults["eps"] == (1e-30, 1e-3)
    assert optimizer.defaults["weight_decay"] == 0
    assert not optimizer.defaults["relative_step"]
    assert not optimizer.defaults["scale_parameter"]
    assert made.model.lr_schedule.warmup == 2000
    assert (made.datamodule.global_batch_size, made.datamodule.sequence_length) == (256, 8192)
    assert made.trainer.max_steps == 50_000


def test_the_rehearsal_keeps_masking_objective_and_optimizer_class() -> None:
    stage, rehearsal = cli("--config", "stage2.yaml"), cli(*REHEARSAL)
    for part in ("masking", "objective"):
        assert rehearsal.config.model[part] == stage.config.model[part]
    assert rehearsal.config.model.optimizer.class_path == stage.config.model.optimizer.class_path
    assert isinstance(rehearsal.model.backbone_source, ScratchBackbone)


def test_callbacks_are_appended_not_replaced() -> None:
    appended = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/bound"]
    made = cli("--config", "quickstart.yaml", *appended)
    names = {type(callback).__name__ for callback in made.trainer.callbacks}
    assert {"EarlyStopping", "DiffusionSampling", "DiffusionMonitor", "Throughput", "ModelExport"} <= names


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config", "no_such.yaml"], ["no_such.yaml", "stage2.yaml"]),
        (["--model.masking", "NoSuchMasking"], ["NoSuchMasking"]),
        (
            ["--model.masking", "BlockMasking", "--model.masking.sizes=[2]", "--model.masking.probability=-0.1"],
            ["-0.1"],
        ),
        (["--model.masking", "configs/masking/progressive.yaml", "--model.masking.prefix=0.9"], ["prefix", "100"]),
        (["--model.masking", "BlockMasking", "--model.masking.size=[2]"], ["size"]),
        (["--data.sequence_length", "1"], ["data.sequence_length is 1"]),
        (["--data.sources+=TextFiles", "--data.sources.paths=[]", "--data.sources.max_tokens=0"], ["max_tokens"]),
        (["--sampling.every_n_steps", "-1"], ["sampling.every_n_steps is -1"]),
        (["--sampling.steps", "0"], ["steps is 0"]),
        (["--model.objective.denominator", "rows"], ["denominator"]),
        (["--trainer.maximum_steps", "3"], ["maximum_steps"]),
    ],
)
def test_a_bad_setting_is_an_error_that_names_it(
    args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    base = [] if args[0] == "--config" else ["--config", str(REPOSITORY / "configs/quickstart.yaml")]
    args = [arg.replace("configs/", f"{REPOSITORY}/configs/") for arg in args]
    with pytest.raises((SystemExit, ValueError)) as error:
        cli(*base, *args)
    message = f"{error.value} {capsys.readouterr().err}"
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model.init_from", "nowhere"], ["model.init_from", "nowhere"]),
        (["--model.backbone", "PretrainedBackbone", "--model.backbone.path", "nowhere"], ["model.backbone", "nowhere"]),
        (["--model.backbone.max_position_embeddings", "32"], ["data.sequence_length is 64", "32 positions"]),
        (["--ckpt_path", "nowhere.ckpt"], ["--ckpt_path nowhere.ckpt"]),
        (["--trainer.max_steps", "0"], ["trainer.max_steps is 0"]),
        (["--data.tokenizer", "nowhere"], ["data.tokenizer is 'nowhere'"]),
        (["--data.sources+=TextFiles", "--data.sources.paths=[nowhere]"], ["TextFiles.paths names nowhere"]),
        (["--data.vocab_size", "100"], ["data.vocab_size is 100"]),
        (["--data.sequence_length", "1"], ["error: data.sequence_length is 1"]),
        (
            ["--data.sources+=TextFiles", "--data.sources.paths=[]", "--data.sources.max_tokens=0"],
            ["error: ", "max_tokens"],
        ),
    ],
)
def test_what_cannot_run_is_one_line_and_leaves_nothing_behind(
    args: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["main.py", "fit", "--config", "quickstart.yaml", *args])
    with pytest.raises(SystemExit) as stopped:
        entry.main()
    message = str(stopped.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "cache" / "corpora").exists()


def run(
    *args: str, cwd: Path, check: bool = True, program: Sequence[str] = (sys.executable,)
) -> subprocess.CompletedProcess[str]:
    """Run a command line of the README, in which ``python`` is this interpreter."""
    cache = Path(os.environ.get("CODA_TEST_CACHE", cwd.parent / "cache"))
    environment = {**os.environ, "CODA_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run([*program, *args], cwd=cwd, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All curves of a run."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


SHORT = ["--trainer.max_steps=10", "--trainer.log_every_n_steps=1", "--trainer.val_check_interval=10"]
SHORT += ["--trainer.limit_val_batches=2", "--sampling.every_n_steps=0", "--sampling.max_new_tokens=8"]
SHORT += ["--checkpoint.every_n_train_steps=5", "--checkpoint.save_top_k=-1"]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 2, rehearsed for ten steps from the command line; returns the run's folder."""
    cwd = tmp_path_factory.mktemp("rehearsal")
    run(str(REPOSITORY / "main.py"), "fit", *REHEARSAL, *SHORT, cwd=cwd)
    return cwd / "runs" / "stage2" / "version_0"


@pytest.mark.slow
def test_the_rehearsal_shows_the_shares_following_the_table(rehearsed: Path) -> None:
    curves = scalars(rehearsed)
    for name, table in {"S1": [1, 5, 10, 15, 20], "S2": [1, 5, 10, 15, 20], "S3": [5, 10, 15, 20, 25]}.items():
        values = [round(100 * value) for _, value in curves[f"schedule/{name}"]]
        assert values == [share for share in table for _ in range(2)]
        assert f"strategy/share_{name}" in curves
    assert {"train/loss", "val/bound", "throughput/tokens_per_sec", "train/gradient_norm"} <= curves.keys()
    assert (rehearsed / "config.yaml").is_file()


@pytest.mark.slow
def test_validate_test_and_predict_read_the_checkpoint(rehearsed: Path) -> None:
    options = [*REHEARSAL, *SHORT, "--ckpt_path", str(rehearsed / "checkpoints" / "last.ckpt")]
    options += ["--trainer.limit_test_batches=2", "--trainer.limit_predict_batches=1", "--data.sequence_length=32"]
    for command, word in (("validate", "val/bound"), ("test", "test/bound"), ("predict", "predictions are in")):
        assert word in run(str(REPOSITORY / "main.py"), command, *options, cwd=rehearsed).stdout


@pytest.mark.slow
def test_a_resumed_run_keeps_the_command_line_and_ends_where_the_whole_run_does(rehearsed: Path) -> None:
    checkpoint = rehearsed / "checkpoints" / "step=5.ckpt"
    options = [*REHEARSAL, *SHORT, "--ckpt_path", str(checkpoint), "--model.seed=0", "--trainer.logger.name=resumed"]
    run(str(REPOSITORY / "main.py"), "fit", *options, cwd=rehearsed)
    resumed = rehearsed / "runs" / "resumed" / "version_0"
    whole, again = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (rehearsed, resumed))
    assert again["global_step"] == 10
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, again["state_dict"][key])

    # Weights to start from are not read any more: their folder may be gone by now.
    changed = [*options[:-1], "--trainer.logger.name=changed", "--model.optimizer.lr=0.123", "--model.init_from=gone"]
    run(str(REPOSITORY / "main.py"), "fit", *changed, cwd=rehearsed)
    saved: dict[str, Any] = yaml.safe_load((rehearsed / "runs" / "changed" / "version_0" / "config.yaml").read_text())
    assert saved["model"]["optimizer"]["init_args"]["lr"] == 0.123


@pytest.mark.slow
def test_the_readme_uses_a_trained_model(rehearsed: Path) -> None:
    """Every generate and export command of this run's paths, and the Python block."""
    readme = (REPOSITORY / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", readme, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").replace("runs/quickstart/version_0", str(rehearsed)).splitlines()
    # Those that read corpora and benchmarks are run in tests/data and tests/evaluation; other exports need other runs.
    mine = ("python -m coda.generate", f"python -m coda.export --checkpoint {rehearsed}")
    commands = [line for line in lines if line.startswith(mine)]
    commands.sort(key=lambda line: "coda.export" not in line)
    assert {line.split()[2] for line in commands} == {"coda.generate", "coda.export"}
    for line in commands:
        assert run(line, cwd=rehearsed, program=["bash", "-c"]).stdout.strip()
    codes = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    (code,) = [code for code in codes if "coda.model" in code]  # the other one asks a server
    printed = run("-c", code, cwd=rehearsed).stdout
    assert "def add(a, b):" in printed
    assert "<|mask|>" not in printed


@pytest.mark.slow
def test_the_next_stage_starts_from_an_export(rehearsed: Path) -> None:
    options = ["--config", "stage1.yaml", "--config", "rehearsal.yaml", *SHORT]
    for source in (rehearsed / "export", rehearsed / "checkpoints" / "last.ckpt"):
        run(str(REPOSITORY / "main.py"), "fit", *options, "--model.init_from", str(source), cwd=rehearsed)
    other = ["--data.vocab_size=1024", "--model.init_from", str(rehearsed / "export")]
    failed = run(str(REPOSITORY / "main.py"), "fit", *options, *other, cwd=rehearsed, check=False)
    assert failed.returncode != 0
    assert "data.tokenizer does not fit" in failed.stderr
