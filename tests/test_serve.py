"""``python -m coda.serve``: how it starts, ends and fails."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from coda.serve import command_line, main, underscored
from tests.serving.conftest import ROOT, served_folder
from tests.test_readme import commands

__all__ = ["served_folder"]  # the fixture


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "coda.serve", "--device", "cpu", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_command_serves_until_it_is_terminated(served_folder: str, tmp_path: Path) -> None:
    """And finishes what it is doing."""
    (tmp_path / "keys").write_text("key")
    server = start(
        "--model", served_folder, "--port", "0", "--api-key-file", f"{tmp_path}/keys", "--sampler.steps", "3"
    )
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "running on" in line)
        address = line.split("running on ")[1].split()[0]
        body = json.dumps({"prompt": "x", "max_tokens": 9, "stream": True, "stream_drafts": True}).encode()
        headers = {"Content-Type": "application/json", "Authorization": "Bearer key"}
        with urllib.request.urlopen(urllib.request.Request(f"{address}/v1/completions", body, headers)) as answer:
            assert answer.readline()
            server.send_signal(signal.SIGTERM)
            rest = answer.read().decode()
        assert rest.count("event: draft") >= 3 and rest.endswith("data: [DONE]\n\n")
        assert '"step": 3' in rest and '"step": 4' not in rest
        assert server.wait(30) in (0, -signal.SIGTERM)
    finally:
        server.kill()
        server.communicate()


@pytest.mark.slow
def test_bad_settings_end_the_command_with_one_line(served_folder: str) -> None:
    for arguments, message in (
        (("--model", "/nothing/here"), "error: no model at '/nothing/here'"),
        (("--model", served_folder, "--sampler.thresold", "0.9"), "error: sampler.thresold is not a setting"),
    ):
        out, err = start(*arguments).communicate(timeout=60)
        assert err.strip().splitlines()[-1].startswith(message), err
        assert "Traceback" not in err
        assert out == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key_file": "/nothing"}, "api_key_file is /nothing, which cannot be read"),
        ({"sampler": {"steps": 0}}, "steps is 0; it must be at least 1"),
        ({"sampler": {"seed": 1}}, "sampler.seed is not a setting of the server"),
        ({"max_batch_size": 0}, "max_batch_size is 0; it must be at least 1"),
        ({"max_queue": -1}, "max_queue is -1"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms is nan"),
        ({"dtype": "int8"}, "dtype is int8"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_named(served_folder: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(served_folder, device="cpu", **settings)


def test_an_empty_key_file_opens_nothing(served_folder: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n  \n")
    with pytest.raises(ValueError, match="holds no key; write one per line"):
        main(served_folder, device="cpu", api_key_file=f"{tmp_path}/keys")


def test_without_the_extra_the_way_to_install_it_is_told(served_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("coda.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ImportError, match=r"fastapi is not installed; pip install 'coda-diffusion\[serve\]'"):
        main(served_folder, device="cpu")


@pytest.mark.slow
def test_the_command_is_importable_without_the_extra() -> None:
    """In a process of its own: nothing of it is loaded before it is needed."""
    code = "import sys, coda.serve; assert not {'fastapi', 'uvicorn', 'prometheus_client'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("arguments", commands("python -m coda.serve"), ids=" ".join)
def test_the_commands_of_the_readme_parse(arguments: list[str]) -> None:
    assert command_line().parse_args(underscored(arguments)).model


def test_dashes_in_names_of_options_are_underscores_and_values_stay() -> None:
    written = ["--api-key-file", "my-keys", "--name=a-b", "--sampler.block-length=3", "--", "-x"]
    assert underscored(written) == ["--api_key_file", "my-keys", "--name=a-b", "--sampler.block_length=3", "--", "-x"]
