"""Packed rows: consecutive tokens of a corpus, cut to a fixed length, addressed by the number of the sample."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from coda.data.mixture import Mixture
from coda.data.store import TokenStream


class Rows(Dataset[dict[str, Tensor]], ABC):
    """The samples of a mixture. Item n is the n-th sample; there is no end to them.

    Attributes:
        streams: The corpora.
        mixture: Which row of which corpus a sample is.
    """

    streams: list[TokenStream]
    mixture: Mixture

    def __len__(self) -> int:
        """Samples in one pass over the mixture."""
        return self.mixture.length

    @abstractmethod
    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        """Return the n-th sample."""

    def collate(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Join rows to a batch."""
        return default_collate(rows)


class PackedRows(Rows):
    """Rows of a fixed length.

    A row is a slice of a corpus's tokens, which may cross documents and shards; the incomplete last row of a corpus is
    left out. Nothing is kept but memory maps.

    Args:
        streams: The corpora.
        mixture: Which row of which of them a sample is.
        sequence_length: L, tokens per row.
        segments: Also return which document each token belongs to.
    """

    def __init__(self, streams: list[TokenStream], mixture: Mixture, sequence_length: int, segments: bool) -> None:
        self.streams = streams
        self.mixture = mixture
        self.sequence_length = sequence_length
        self.segments = segments

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        """Return ``input_ids`` int64 [L], ``maskable`` bool [L], ``sample`` int64 [] and, if asked for, ``segment_ids``
        int64 [L].
        """
        place = self.mixture.locate(sample)
        stream = self.streams[place.corpus]
        start = place.row * self.sequence_length
        stop = start + self.sequence_length
        row = {
            "input_ids": torch.from_numpy(stream.read(start, stop).astype(np.int64)),
            "maskable": torch.ones(self.sequence_length, dtype=torch.bool),
            "sample": torch.tensor(sample),
        }
        if self.segments:
            documents = stream.document_of(start, stop)
            row["segment_ids"] = torch.from_numpy(documents - documents[0])
        return row


class SampleOrder(Sampler[int]):
    """The samples that one rank reads: the global sequence first, first + 1, ... cut into micro-batches, dealt out.

    The sequence does not depend on how many ranks, accumulated micro-batches or worker processes share it.

    Args:
        samples: How many to read over all ranks, from the first on; an incomplete last micro-batch is left out.
        micro_batch: Rows per rank and forward pass.
        rank: This process.
        world_size: Number of processes.
        first: Called when an epoch begins; returns its first sample.
    """

    def __init__(
        self, samples: int, micro_batch: int, rank: int, world_size: int, first: Callable[[], int] = lambda: 0
    ) -> None:
        self.stride = micro_batch * world_size
        self.batches = samples // self.stride
        self.micro_batch = micro_batch
        self.rank = rank
        self.first = first

    def __len__(self) -> int:
        return self.batches * self.micro_batch

    def __iter__(self) -> Iterator[int]:
        first = self.first() + self.rank * self.micro_batch
        for batch in range(self.batches):
            yield from range(first + batch * self.stride, first + batch * self.stride + self.micro_batch)
