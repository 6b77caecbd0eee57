"""Which positions reach the output head: those that predict a masked token, and as few others as the device allows.

All tensors here are numbered by the position that predicts, which under a shift is the one before the token.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Selection(ABC):
    """Moves values between the positions [B, L] of a batch and the slots [..., N] of the output head.

    Args:
        scored: bool [B, L], the positions that predict a masked token.

    Attributes:
        capacity: The first slots of each group, which the head always computes; the others only if they are
            ``needed``. None computes all.
        needed: Scalar, slots that the fullest group fills.
        overflow: [B], how many scored positions of each row stand behind the capacity.
    """

    capacity: int | None = None
    needed: Tensor | None = None

    def __init__(self, scored: Tensor) -> None:
        self.scored = scored
        self.overflow = torch.zeros_like(scored[:, 0], dtype=torch.long)

    @abstractmethod
    def states(self, hidden: Tensor) -> Tensor:
        """Bring hidden states [B, L, H] to the slots [..., N, H]; differentiable."""

    @abstractmethod
    def tokens(self, values: Tensor) -> Tensor:
        """Bring values [B, L] to the slots [..., N]; an empty slot gets some position's value."""

    @abstractmethod
    def weights(self, values: Tensor) -> Tensor:
        """The same, but zero in slots that are empty."""

    @abstractmethod
    def rows(self, values: Tensor) -> Tensor:
        """Sum values [..., N] of the slots by row, [B], leaving out empty slots."""


class ExactSelection(Selection):
    """One slot for every scored position: nothing is computed in vain, but the host has to learn how many there are.

    It asks when the selection is made and reads the answer when a slot is needed. On a GPU the answer is there before
    the body of the network begins, if the selection was made before it: the device never waits for the host.
    """

    def __init__(self, scored: Tensor) -> None:
        super().__init__(scored)
        self.order, _ = _in_order(scored.reshape(1, -1))
        self.count = HostNumber(scored.sum())

    @cached_property
    def position(self) -> Tensor:
        """Scored positions of the flattened batch, int64 [N]."""
        return self.order[0, : int(self.count)]

    def states(self, hidden: Tensor) -> Tensor:
        """See :class:`Selection`."""
        return hidden.flatten(0, 1).index_select(0, self.position)

    def tokens(self, values: Tensor) -> Tensor:
        """See :class:`Selection`."""
        return values.flatten().index_select(0, self.position)

    weights = tokens  # no slot is empty

    def rows(self, values: Tensor) -> Tensor:
        """See :class:`Selection`."""
        total = torch.zeros(len(self.scored), dtype=values.dtype, device=values.device)
        return total.index_add_(0, self.position // self.scored.shape[1], values)


class FullSelection(Selection):
    """Every position where it is, scored or not: static shapes, nothing moves, and no capacity to exceed."""

    def states(self, hidden: Tensor) -> Tensor:
        """See :class:`Selection`."""
        return hidden

    def tokens(self, values: Tensor) -> Tensor:
        """See :class:`Selection`."""
        return values

    def weights(self, values: Tensor) -> Tensor:
        """See :class:`Selection`."""
        return torch.where(self.scored, values, 0)

    def rows(self, values: Tensor) -> Tensor:
        """See :class:`Selection`."""
        return self.weights(values).sum(dim=1)


class HostNumber:
    """An integer scalar on its way to the host."""

    def __init__(self, value: Tensor) -> None:
        self.arrived: torch.cuda.Event | None = None
        if value.device.type == "cuda":
            value = value.to("cpu", non_blocking=True)  # into pinned memory, behind what the device has to do already
            self.arrived = torch.cuda.Event()
            self.arrived.record()
        self.value = value

    def __int__(self) -> int:
        if self.arrived is not None:
            self.arrived.synchronize()
        return int(self.value)


class CompactSelection(Selection):
    """The scored positions of each group of rows first, in slots of a fixed number.

    A cumulative sum and a scatter say which position a slot holds, and which slot a position went to: no sort, no shape
    that depends on the data. Groups never mix, so that a batch sharded by rows needs no communication.

    Args:
        scored: bool [B, L].
        rows: Consecutive rows that share their slots, a divisor of B.
        capacity: Share of a group's positions in (0, 1).
    """

    def __init__(self, scored: Tensor, rows: int, capacity: float) -> None:
        super().__init__(scored)
        self.shape = (scored.shape[0] // rows, rows * scored.shape[1])
        self.capacity = max(int(capacity * self.shape[1]), 1)
        grouped = scored.view(self.shape)
        self.order, rank = _in_order(grouped)
        self.rank = rank.clamp(min=0)
        counts = grouped.sum(dim=1, keepdim=True)
        self.needed = counts.max()
        self.filled = torch.arange(self.shape[1], device=scored.device) < counts
        self.overflow = (grouped & (rank >= self.capacity)).view_as(scored).sum(dim=1)

    def states(self, hidden: Tensor) -> Tensor:
        """See :class:`Selection`."""
        grouped = hidden.reshape(*self.shape, hidden.shape[-1])
        return _Compact.apply(grouped, self.order, self.rank, self.scored.view(self.shape))

    def tokens(self, values: Tensor) -> Tensor:
        """See :class:`Selection`."""
        return values.reshape(self.shape).gather(1, self.order)

    def weights(self, values: Tensor) -> Tensor:
        """See :class:`Selection`."""
        return torch.where(self.filled, self.tokens(values), 0)

    def rows(self, values: Tensor) -> Tensor:
        """See :class:`Selection`."""
        return torch.where(self.scored, values.gather(1, self.rank).view_as(self.scored), 0).sum(dim=1)


class _Compact(torch.autograd.Function):
    """Gather states by slot; the gradient is gathered by position, where autograd would scatter (slow on a TPU)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, order: Tensor, rank: Tensor, scored: Tensor) -> Tensor:
        ctx.save_for_backward(rank, scored)
        return _gather(hidden, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        rank, scored = ctx.saved_tensors
        return torch.where(scored[..., None], _gather(grad_outputs[0], rank), 0), None, None, None


def _in_order(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """For bool [G, N]: the chosen columns of each group in the first slots, and how many stand before each column."""
    groups, columns = chosen.shape
    rank = chosen.long().cumsum(dim=1) - 1
    # Columns that are not chosen all go to one slot more, which is cut off.
    slot = torch.where(chosen, rank, columns)
    order = torch.zeros(groups, columns + 1, dtype=torch.long, device=chosen.device)
    column = torch.arange(columns, device=chosen.device).expand_as(chosen)
    return order.scatter(1, slot, column)[:, :-1], rank


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """Rows [G, N, H] of ``values`` [G, M, H] at ``index`` [G, N].

    XLA's partitioner keeps this form on the device that holds the group; indexing by (group, position) it does not.
    """
    return values.gather(1, index[..., None].expand(*index.shape, values.shape[-1]))
