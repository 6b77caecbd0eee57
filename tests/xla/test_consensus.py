"""What hosts tell each other, between real processes, without XLA."""

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from coda.xla import consensus
from coda.xla.hosts import HostsStrategy

HOSTS = 2


def host(rank: int, meeting: str, facts: dict[str, str], answers: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=HOSTS)
    everyone = SimpleNamespace()
    found: dict[str, Any] = {
        "gathered": consensus.gather(rank * 10),
        "first": HostsStrategy.broadcast(everyone, f"from {rank}"),
        "any": HostsStrategy.reduce_boolean_decision(everyone, rank == 1, all=False),
        "all": HostsStrategy.reduce_boolean_decision(everyone, rank == 1),
    }
    try:
        consensus.agree({"the mesh": "data 2", **facts})
        found["agreed"] = True
    except ValueError as error:
        found["agreed"] = str(error)
    consensus.wait()
    answers.put((rank, found))
    dist.destroy_process_group()


def ask(tmp_path: Path, *facts: dict[str, str]) -> dict[int, dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=host, args=(rank, str(tmp_path / "meeting"), facts[rank], answers))
        for rank in range(HOSTS)
    ]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    return found


@pytest.mark.slow
def test_hosts_that_were_started_alike_agree(tmp_path: Path) -> None:
    found = ask(tmp_path, {"the data": "abc"}, {"the data": "abc"})
    for answers in found.values():
        assert answers == {"gathered": [0, 10], "first": "from 0", "any": True, "all": False, "agreed": True}


@pytest.mark.slow
def test_every_host_learns_what_differs(tmp_path: Path) -> None:
    found = ask(tmp_path, {"the data": "abc"}, {"the data": "xyz"})
    for answers in found.values():
        assert "do not agree on the data: host 0 has abc, host 1 has xyz" in answers["agreed"]


def test_a_single_host_agrees_with_itself() -> None:
    consensus.agree({"the mesh": "fsdp 4"})
    assert consensus.gather(3) == [3] and consensus.rank() == 0
    consensus.wait()


def test_a_fact_that_one_host_lacks_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consensus, "gather", lambda facts: [{}, facts])
    with pytest.raises(ValueError, match="the config: host 0 has None, host 1 has 1"):
        consensus.agree({"the config": "1"})
