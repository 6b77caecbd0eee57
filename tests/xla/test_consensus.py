"""What hosts tell each other, between real processes, without XLA."""

import multiprocessing
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from callbacks import Preemption
from coda.xla import consensus
from coda.xla.hardware import SPMDEnvironment
from coda.xla.hosts import HostsStrategy

HOSTS = 2


def preempted(rank: int) -> dict[str, Any]:
    """Six steps; the last host alone is terminated in the third. What each one writes, and when it leaves."""
    saved: list[int] = []
    trainer = SimpleNamespace(
        accumulate_grad_batches=1,
        callbacks=[],
        checkpoint_callback=None,
        default_root_dir="nowhere",
        is_global_zero=rank == 0,
        is_last_batch=False,
        local_rank=SPMDEnvironment.local_rank(object.__new__(SPMDEnvironment)),  # its constructor wants torch_xla
        save_checkpoint=lambda path: saved.append(step),
        world_size=HOSTS,
    )
    callback, before = Preemption(), signal.getsignal(signal.SIGTERM)
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    try:
        for step in range(6):
            callback.on_train_batch_start(trainer, None, None, step)  # type: ignore[arg-type]
            if step == 2 and rank == HOSTS - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            callback.on_train_batch_end(trainer, None, None, None, step)  # type: ignore[arg-type]
    except SystemExit as end:
        return {"saved": saved, "left": step, "code": end.code}
    finally:
        signal.signal(signal.SIGTERM, before)
    return {"saved": saved, "left": None}


def host(rank: int, meeting: str, answers: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=HOSTS)
    everyone = SimpleNamespace()
    found = {
        "gathered": consensus.gather(rank * 10),
        "first": HostsStrategy.broadcast(everyone, f"from {rank}"),
        "any": HostsStrategy.reduce_boolean_decision(everyone, rank == 1, all=False),
        "all": HostsStrategy.reduce_boolean_decision(everyone, rank == 1),
        "alike": difference({"the mesh": "data 2", "the data": "abc"}),
        "different": difference({"the mesh": "data 2", "the data": "abc" if rank == 0 else "xyz"}),
        "preempted": preempted(rank),
    }
    consensus.wait()
    answers.put((rank, found))
    dist.destroy_process_group()


def difference(facts: dict[str, str]) -> str:
    try:
        consensus.agree(facts)
    except ValueError as error:
        return str(error)
    return "none"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of them found."""
    context = multiprocessing.get_context("spawn")
    answers, meeting = context.Queue(), str(tmp_path_factory.mktemp("hosts") / "meeting")
    processes = [context.Process(target=host, args=(rank, meeting, answers)) for rank in range(HOSTS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)  # what they answer is short: no one waits for a reader
    assert [process.exitcode for process in processes] == [0] * HOSTS
    found = dict(answers.get() for _ in processes)
    return [found[rank] for rank in range(HOSTS)]


@pytest.mark.slow
def test_hosts_hear_each_other(hosts: list[dict[str, Any]]) -> None:
    expected = {"gathered": [0, 10], "first": "from 0", "any": True, "all": False}
    for found in hosts:
        assert {name: found[name] for name in expected} == expected


@pytest.mark.slow
def test_every_host_learns_what_differs(hosts: list[dict[str, Any]]) -> None:
    for found in hosts:
        assert found["alike"] == "none"
        assert "do not agree on the data: host 0 has abc, host 1 has xyz" in found["different"]


@pytest.mark.slow
def test_a_signal_to_one_host_has_all_of_them_write_the_same_step_and_leave(hosts: list[dict[str, Any]]) -> None:
    """The signal comes in step 2, the hosts ask each other behind it and know behind step 3."""
    for found in hosts:
        assert found["preempted"] == {"saved": [3], "left": 4, "code": 75}


def test_a_single_host_agrees_with_itself() -> None:
    consensus.agree({"the mesh": "fsdp 4"})
    assert consensus.gather(3) == [3] and consensus.rank() == 0
    consensus.wait()


def test_a_fact_that_one_host_lacks_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consensus, "gather", lambda facts: [{}, facts])
    with pytest.raises(ValueError, match="the config: host 0 has None, host 1 has 1"):
        consensus.agree({"the config": "1"})
