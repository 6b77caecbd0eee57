"""Packing: rows of fixed length over a token store, and the order in which training reads them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from coda.data.store import TokenStore


class PackedRows(Dataset[dict[str, Tensor]]):
    """Consecutive, non-overlapping rows of a split. Nothing is copied: a row is a slice of the memory-mapped tokens.

    Args:
        store: Where the tokens are.
        split: ``train`` or ``val``.
        sequence_length: L, tokens per row; the incomplete last row is left out.
        segments: Also return which document each token belongs to.
    """

    def __init__(self, store: TokenStore, split: str, sequence_length: int, segments: bool) -> None:
        self.store = store
        self.split = split
        self.sequence_length = sequence_length
        self.segments = segments
        self.rows = len(store.tokens(split)) // sequence_length

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return ``input_ids`` int64 [L], ``maskable`` bool [L] and, if asked for, ``segment_ids`` int64 [L]."""
        start = index * self.sequence_length
        tokens = self.store.tokens(self.split)[start : start + self.sequence_length]
        row = {
            "input_ids": torch.from_numpy(tokens.astype(np.int64)),
            "maskable": torch.ones(self.sequence_length, dtype=torch.bool),
        }
        if self.segments:
            ends = self.store.ends(self.split)
            positions = np.arange(start, start + self.sequence_length)
            documents = np.searchsorted(ends, positions, side="right")
            row["segment_ids"] = torch.from_numpy(documents - documents[0])
        return row


class RowOrder(Sampler[int]):
    """The rows one rank reads in one epoch: a pure function of (seed, epoch, rank), resumable at any sample.

    Every epoch is a new permutation of all rows, cut into global batches, each of which is dealt out to the ranks. The
    order of global batches is therefore the same for any number of ranks and of accumulated micro-batches.

    Args:
        rows: Rows in the split.
        micro_batch: Rows per rank and forward pass.
        rank: This process.
        world_size: Number of processes.
        seed: Of the permutations; None keeps the rows in order.
        epoch: Epoch to start in.
        start: Rows of that epoch, over all ranks, that were already read.
        accumulate: Micro-batches per optimizer step; an incomplete last step is left out.
    """

    def __init__(
        self,
        rows: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        seed: int | None,
        epoch: int = 0,
        start: int = 0,
        accumulate: int = 1,
    ) -> None:
        self.stride = micro_batch * world_size
        self.batches = rows // (self.stride * accumulate) * accumulate
        self.micro_batch = micro_batch
        self.rank = rank
        self.rows = rows
        self.seed = seed
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        return self.batches * self.micro_batch

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self.rows)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows)
        first = self.start // self.stride
        for batch in range(first, self.batches):
            offset = batch * self.stride + self.rank * self.micro_batch
            yield from order[offset : offset + self.micro_batch].tolist()
