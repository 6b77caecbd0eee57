"""The model card: what the hub reads, and the recipe, data and metrics of the run that made the weights."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from callbacks import ModelExport
from coda.adapter import LoRA
from coda.checkpoint import RECORD, read_checkpoint
from coda.data.tokenizer import train_tokenizer
from coda.export import export
from coda.masking import BlockMasking
from coda.release.record import runs_in, runs_of
from tests.conftest import Tiny
from tests.test_export import TEXT, small_model

RUN: dict[str, Any] = {
    "name": "stage2",
    "base": "Qwen/Qwen3-1.7B",
    "config": {
        "model": {
            "masking": {"class_path": "coda.masking.BlockMasking", "init_args": {"sizes": [2, 4], "probability": 1.0}},
            "objective": {"class_path": "coda.objective.DiffusionObjective", "init_args": {"denominator": "maskable"}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-5}},
        },
        "data": {
            "class_path": "coda.data.CorpusDataModule",
            "init_args": {
                "sources": [
                    {"class_path": "coda.data.HubDataset", "init_args": {"path": "bigcode/the-stack-v2", "name": "x"}},
                    {"class_path": "coda.data.TextFiles", "init_args": {"paths": ["mine"]}},
                    {"class_path": "coda.data.HubDataset", "init_args": {"path": "allenai/dclm"}},
                ]
            },
        },
        "trainer": {"precision": "bf16-mixed"},
    },
    "steps": 50_000,
    "batch": {"rows": 256, "length": 8192},
    "corpora": {"arxiv": {"tokens": 9_180_000_000, "share": 0.4375}, "code": {"tokens": 200_000, "share": 0.5625}},
    "metrics": {"val/bound": 0.98765, "train/loss": 1.5},
    "versions": {"torch": "2.13.0"},
}


def card(folder: Path, runs: list[dict[str, Any]], **options: Any) -> ModelCard:
    tokenizer = train_tokenizer([TEXT] * 3, 270)
    export(small_model(tokenizer), tokenizer, folder, runs, **options)
    return ModelCard.load(folder / "README.md")


def test_the_hub_reads_where_the_model_comes_from(tmp_path: Path) -> None:
    data = card(tmp_path / "model", [RUN, {**RUN, "name": "stage3", "base": None}]).data.to_dict()
    assert data["base_model"] == "Qwen/Qwen3-1.7B"
    assert data["license"] == "apache-2.0"
    assert data["datasets"] == ["allenai/dclm", "bigcode/the-stack-v2"]
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert {"diffusion", "code", "custom_code"} <= set(data["tags"])


@pytest.mark.parametrize(
    ("base", "given", "license"),
    [
        ("Qwen/Qwen3-0.6B", None, "apache-2.0"),
        ("Salesforce/CoDA-v0-Base", None, None),
        (None, None, None),
        ("Qwen/Qwen3-0.6B", "mit", "mit"),
    ],
)
def test_no_license_is_made_up(tmp_path: Path, base: str | None, given: str | None, license: str | None) -> None:
    data = card(tmp_path / "model", [{**RUN, "base": base}], license=given).data.to_dict()
    assert data.get("license") == license
    assert data.get("base_model") == base


def test_the_recipe_is_filled_in(tmp_path: Path) -> None:
    text = card(tmp_path / "model", [RUN]).text
    for line in (
        "# CoDA: stage2",
        "Starts from [Qwen/Qwen3-1.7B](https://huggingface.co/Qwen/Qwen3-1.7B).",
        "| stage2 | 50,000 | 256 x 8,192 | 104,857,600,000 |",
        "| arxiv | 9,180,000,000 | 43.8% |",
        "| `val/bound` | 0.9877 |",
        "| masking | BlockMasking(sizes=[2, 4], probability=1.0) |",
        "| objective | DiffusionObjective(denominator=maskable) |",
        "| optimizer | AdamW(lr=2e-05) |",
        "| output head | shared with the embedding |",
        "Versions: torch 2.13.0.",
    ):
        assert line in text.splitlines(), line
    assert yaml.safe_load(text.split("```yaml")[1].split("```")[0]) == RUN["config"]


def test_weights_without_a_run_say_so(tmp_path: Path) -> None:
    made = card(tmp_path / "model", [])
    assert "These weights carry no record of their training." in made.text
    assert "base_model" not in made.data.to_dict()
    assert not (tmp_path / "model" / "training.json").exists()


def test_the_python_of_the_card_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = card(tmp_path / "model", [RUN]).text.split("```python")[1].split("```")[0]
    exec(code.replace("PATH_OR_NAME", str(tmp_path / "model")), {})
    written = capsys.readouterr().out
    assert "def add(a, b):" in written
    assert "<|mask|>" not in written


def test_a_fit_leaves_its_record_and_the_next_one_adds_to_it(tiny: Tiny) -> None:
    first, second = str(tiny.folder / "first"), str(tiny.folder / "second")
    tiny.fit(ModelExport(first, verify=False), masking=BlockMasking([2, 4]), max_steps=2, val_check_interval=2)
    following = tiny.module(init_from=first, adapter=LoRA(rank=2))
    following.config = {
        "model": {"masking": {"class_path": "x.RandomMasking"}, "init_from": str(tiny.folder / "first")},
        "trainer": {"precision": "32-true", "default_root_dir": "/home/me"},
        "sampling": {"steps": 3},
    }
    trainer = tiny.trainer(ModelExport(second, verify=False), max_steps=3, limit_val_batches=0)
    trainer.fit(following, tiny.data())
    trainer.save_checkpoint(tiny.folder / "x.ckpt")
    (run,), runs = runs_of(first), runs_of(second)
    assert runs[0] == run
    assert [item["steps"] for item in runs] == [2, 3]
    assert runs_of(str(tiny.folder / "x.ckpt")) == runs
    assert run["batch"] == {"rows": 4, "length": 32}
    assert run["corpora"]["corpus"]["share"] == 1.0
    assert run["corpora"]["corpus"]["tokens"] > 500
    assert {"train/loss", "val/bound", "val/accuracy"} <= run["metrics"].keys()
    assert run["config"]["model"]["masking"] == {"class_path": "coda.masking.block.BlockMasking"}
    assert runs[1]["config"]["model"]["init_from"] == "first", "a path of this machine is published"
    assert runs[1]["config"]["trainer"] == {"precision": "32-true"}
    assert "sampling" not in runs[1]["config"]
    rows = "| training | 2 | 4 x 32 | 256 |\n| training | 3 | 4 x 32 | 384 |"
    assert rows in Path(second, "README.md").read_text()


def test_a_run_that_goes_on_keeps_the_record_of_those_before(tiny: Tiny) -> None:
    first = str(tiny.folder / "first")
    tiny.fit(ModelExport(first, verify=False), max_steps=1, limit_val_batches=0)
    for steps, init_from, ckpt_path in ((1, first, None), (2, None, tiny.folder / "x.ckpt")):
        trainer = tiny.trainer(max_steps=steps, limit_val_batches=0)
        trainer.fit(tiny.module(init_from=init_from), tiny.data(), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tiny.folder / "x.ckpt")
    run = read_checkpoint(str(tiny.folder / "x.ckpt"))[RECORD]["run"]
    assert [item["steps"] for item in runs_in(run)] == [1, 2]
