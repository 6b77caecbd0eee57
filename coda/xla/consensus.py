"""What hosts tell each other: over CPUs, through torch.distributed, since devices are the compiler's under SPMD."""

import hashlib
from typing import Any

import torch.distributed as dist


def join_hosts(hosts: int) -> None:
    """Connect this process to those of the other ``hosts``; the runtime knows where they are."""
    if hosts > 1 and not dist.is_initialized():
        import torch_xla.distributed.xla_backend  # noqa: F401  (registers xla://)

        dist.init_process_group("gloo", init_method="xla://")


def connected() -> bool:
    """Whether there are other hosts."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Which of the hosts this is."""
    return dist.get_rank() if connected() else 0


def wait() -> None:
    """Wait for all hosts."""
    if connected():
        dist.barrier()


def gather(value: Any) -> list[Any]:
    """The ``value`` of every host, in their order."""
    if not connected():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def digest(value: Any) -> str:
    """Short fingerprint of a text or of bytes."""
    return hashlib.sha256(value if isinstance(value, bytes) else str(value).encode()).hexdigest()[:16]


def agree(facts: dict[str, str]) -> None:
    """Check that all hosts were started alike. Every host must call it.

    Args:
        facts: By what they are about, as words for a person; equal on all hosts.

    Raises:
        ValueError: On every host, naming what differs and where.
    """
    everyone = gather(facts)
    for name in sorted({name for theirs in everyone for name in theirs}):
        values = [theirs.get(name) for theirs in everyone]
        different = [f"host {host} has {value}" for host, value in enumerate(values) if value != values[0]]
        if different:
            raise ValueError(
                f"the hosts do not agree on {name}: host 0 has {values[0]}, {', '.join(different[:4])}; start the same "
                "command with the same files on all of them"
            )
