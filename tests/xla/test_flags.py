"""Flags of libtpu reach the environment before the devices start, or the user is told that it is too late."""

from typing import Any

import pytest

from tests.xla.programs import run_program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return run_program("tests/xla/flags.py")


def test_flags_join_those_of_the_environment_and_win_over_them(results: dict[str, Any]) -> None:
    found = set(results["found"])
    assert {
        "--megascale_port=7",
        "--xla_tpu_scoped_vmem_limit_kib=98304",
        "--xla_enable_async_all_gather=true",
    } <= found
    assert "--xla_tpu_scoped_vmem_limit_kib=1" not in found


def test_flags_after_the_start_are_refused(results: dict[str, Any]) -> None:
    assert "libtpu_flags comes too late" in results["late"]
    assert "LIBTPU_INIT_ARGS" in results["late"]


def test_names_with_dashes_and_values_with_spaces_are_refused(results: dict[str, Any]) -> None:
    assert "has '--xla_enable_async_all_gather'" in results["dashes"]
    assert "has 'xla_dump_to': 'my folder'" in results["spaces"]
