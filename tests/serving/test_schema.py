"""Whatever is sent, the server answers as its OpenAPI schema says, and never with a bug."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.conftest import Serve

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "unsupported_method,missing_required_header"
)


@pytest.mark.slow
def test_schemathesis_finds_nothing(serve: Serve, tmp_path: Path) -> None:
    with serve(sampler={"max_new_tokens": 4}, max_queue=32, max_wait_ms=0) as served:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{served.port}/openapi.json"),
                *("--checks", CHECKS, "--max-examples", "100", "--seed", "1", "--request-timeout", "20", "--no-color"),
                *("--phases", "examples,coverage,fuzzing", "--generation-deterministic"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=80,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        answered = [
            served.metric("coda_requests_total", route=f"/v1/{path}completions", status="200") for path in ("", "chat/")
        ]
        assert min(answered) > 0, "no request was one that can be answered"
        assert served.request("GET", "/health")[0] == 200
