"""The processes that share the work, under torchrun, inside a Trainer, or alone."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(days=1)  # of a rank that waits for slower ones, or for the first one's judging


class Ranks:
    """This process's place among those that share the work.

    Args:
        rank: Number of this process.
        size: How many there are; with 1 nothing is ever exchanged.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @classmethod
    def join(cls) -> "Ranks":
        """Join the process group that is there, or that torchrun wants; alone if there is neither."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        if dist.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group("gloo", timeout=PATIENCE)  # only Python objects are exchanged
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Whether this is the process that judges, writes and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def local_device(device: str) -> str:
    """``device``, with the number of this process's GPU where there are several processes on one machine."""
    if device != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return f"cuda:{os.environ['LOCAL_RANK']}"
