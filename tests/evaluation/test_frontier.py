"""Accuracy against cost: which points are tried, which are on the frontier, and what is written."""

import builtins
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from coda.evaluation import frontier
from coda.evaluation.frontier import main, mark_frontier, plot, points

SHORT = {"max_new_tokens": 8}


def row(accuracy: float, nfe: float, task: str = "humaneval", method: str = "entropy") -> dict[str, Any]:
    cost = {"nfe": nfe, "seconds": nfe / 10, "tokens_per_second": 1.0, "on_frontier": False}
    interval = {"low": accuracy - 0.05, "high": accuracy + 0.05}
    return {"method": method, "settings": "", "task": task, "pass@1": accuracy, **interval, **cost}


def test_every_method_is_tried_with_every_number_of_steps() -> None:
    tried = list(points({"entropy": {}, "margin": {"alg": "topk_margin"}}, [8, 16]))
    assert tried == [
        ("entropy", {"steps": 8}),
        ("entropy", {"steps": 16}),
        ("margin", {"alg": "topk_margin", "steps": 8}),
        ("margin", {"alg": "topk_margin", "steps": 16}),
    ]


def test_a_method_that_sets_its_own_pace_is_not_tried_with_steps() -> None:
    tried = list(
        points({"threshold": {"threshold": [0.7, 0.9], "block_length": 32}, "two": {"tokens_per_step": 2}}, [8])
    )
    assert tried == [
        ("threshold", {"threshold": 0.7, "block_length": 32}),
        ("threshold", {"threshold": 0.9, "block_length": 32}),
        ("two", {"tokens_per_step": 2}),
    ]


@pytest.mark.parametrize(
    ("methods", "steps", "message"),
    [
        ({}, [8], "methods is empty"),
        ({"entropy": {}}, [], "steps is empty"),
        ({"x": {"steps": [1, 2], "temperature": [0, 1]}}, [8], r"methods\.x has lists of values for steps and temp"),
    ],
    ids=["methods", "steps", "two lists"],
)
def test_nothing_to_try_is_an_error(methods: dict[str, Any], steps: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(points(methods, steps))


def test_the_frontier_is_what_no_other_point_beats() -> None:
    rows = [row(0.2, 32), row(0.4, 64), row(0.35, 128), row(0.4, 256), row(0.5, 512), row(0.1, 512, task="mbpp")]
    mark_frontier(rows)
    assert [one["on_frontier"] for one in rows] == [True, True, False, False, True, True]


@pytest.fixture(scope="module")
def measured(
    exported: str, benchmarks_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Any]]:
    output = tmp_path_factory.mktemp("frontier")
    methods = {"entropy": {}, "margin": {"alg": "topk_margin"}}
    where: dict[str, Any] = {"data": str(benchmarks_folder), "device": "cpu", "allow_unsandboxed": True}
    rows = main(exported, str(output), "humaneval,mbpp", [2, 4], methods, SHORT, **where)
    return output, rows


def test_one_command_measures_every_point(measured: tuple[Path, list[Any]]) -> None:
    rows = measured[1]
    assert [(one["method"], one["task"], one["nfe"]) for one in rows] == [
        (method, task, steps) for method in ("entropy", "margin") for steps in (2, 4) for task in ("humaneval", "mbpp")
    ]
    assert all(one["low"] <= one["pass@1"] <= one["high"] and one["seconds"] > 0 for one in rows)


def test_the_csv_and_the_json_have_all_points_and_what_shaped_them(measured: tuple[Path, list[Any]]) -> None:
    output, rows = measured
    with (output / "frontier.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [(one["settings"], float(one["nfe"])) for one in written] == [(one["settings"], one["nfe"]) for one in rows]
    report = json.loads((output / "frontier.json").read_text())
    assert report["points"] == rows
    assert {"weights", "dtype", "sampler", "methods", "steps", "batch_size"} <= report["settings"].keys()


def test_the_same_command_again_draws_nothing(
    measured: tuple[Path, list[Any]], exported: str, benchmarks_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coda.evaluation.generating.decode", lambda *_: pytest.fail("it was drawn again"))
    methods = {"entropy": {}, "margin": {"alg": "topk_margin"}}
    where: dict[str, Any] = {"data": str(benchmarks_folder), "device": "cpu", "allow_unsandboxed": True}
    assert main(exported, str(measured[0]), "humaneval,mbpp", [2, 4], methods, SHORT, **where) == measured[1]


def test_the_table_lists_the_cheapest_first() -> None:
    rows = [row(0.5, 512), row(0.25, 32)]
    mark_frontier(rows)
    lines = frontier.table(rows).splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["*", "entropy"]] * 2
    assert [line.split()[3] for line in lines[2:]] == ["25.0", "50.0"]


def test_without_matplotlib_there_is_no_plot_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    frontier.write_report(tmp_path, [row(0.5, 32)], {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frontier.csv", "frontier.json"]


def test_the_plot_is_an_image(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra eval")
    assert plot(tmp_path / "x.png", [row(0.2, 32), row(0.4, 64), row(0.3, 64, method="margin")])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_bad_settings_are_errors_before_the_model_is_loaded(benchmarks_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"alg is beam"):
        main("nowhere", str(tmp_path), methods={"x": {"alg": "beam"}}, data=str(benchmarks_folder))
