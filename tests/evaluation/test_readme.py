"""The README's evaluation commands parse as they stand."""

from pathlib import Path
from typing import Any

import pytest

from coda import evaluate
from coda.evaluation import frontier
from coda.evaluation.subject import run_command
from tests.test_readme import REPOSITORY, commands

EVALUATE, FRONTIER = "python -m coda.evaluate ", "python -m coda.evaluation.frontier"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        *((evaluate, arguments) for arguments in commands(EVALUATE)),
        *((frontier, arguments) for arguments in commands(FRONTIER)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_of_the_readme_parse(
    module: Any, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", ["command", *arguments, "--print_config"])
    with pytest.raises(SystemExit) as stopped:
        run_command(module.main, "command", "")
    assert stopped.value.code in (0, None)
    assert f"model: {arguments[1]}" in capsys.readouterr().out


def test_a_setting_that_does_not_fit_is_one_line(
    monkeypatch: pytest.MonkeyPatch, benchmarks_folder: Path, tmp_path: Path
) -> None:
    where = ["--data", str(benchmarks_folder), "--output", str(tmp_path), "--tasks", "humanevil"]
    monkeypatch.setattr("sys.argv", ["command", "--model", "nowhere", *where])
    with pytest.raises(SystemExit, match=r"\Aerror: tasks names 'humanevil'; there are [^\n]+\Z"):
        run_command(evaluate.main, "command", "")
