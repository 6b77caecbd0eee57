"""Which columns of the canvas a denoising step computes: all of them, or a part beside cached keys and values."""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from .blocks_coda import Block, PerRow
from .canvas_coda import Canvas


class CanvasCache(Cache):
    """Keys and values of every canvas column, overwritten in place where they are computed anew.

    transformers' own caches grow at the end; tokens of a canvas change in the middle, at other columns in each row.

    Args:
        length: Columns of the canvas.
    """

    def __init__(self, length: int) -> None:
        super().__init__(layer_class_to_replicate=partial(_CanvasLayer, self))  # type: ignore[arg-type]
        self.length = length
        self.rows: Tensor | None = None
        self.columns: Tensor | None = None

    def at(self, columns: Tensor, rows: Tensor | None = None) -> "CanvasCache":
        """Say where the next forward's tokens stand: ``columns`` [n, Q] of the cached rows ``rows`` [n], None for all."""
        self.columns, self.rows = columns, rows
        return self

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys that attention sees, and the first one's column."""
        return self.length, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are given with every forward: none precede them."""
        return 0

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but ``rows``."""
        for layer in self.layers:
            layer.batch_select_indices(torch.tensor(rows, device=layer.keys.device, dtype=torch.long))


class _CanvasLayer(DynamicLayer):
    """Keys and values of one layer, [B, heads, length, head_dim]."""

    def __init__(self, place: CanvasCache) -> None:
        super().__init__()
        self.place = place
        self.is_initialized = False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values [n, heads, Q, head_dim] to their columns; return those of all columns."""
        columns, rows = self.place.columns, self.place.rows
        assert columns is not None
        if not self.is_initialized:
            shape = (*key_states.shape[:2], self.place.length, key_states.shape[3])
            self.keys, self.values = key_states.new_zeros(shape), value_states.new_zeros(shape)
            self.is_initialized = True
        index = columns[:, None, :, None].expand_as(key_states)
        if rows is None:
            return self.keys.scatter_(2, index, key_states), self.values.scatter_(2, index, value_states)
        keys = self.keys[rows].scatter_(2, index, key_states)
        values = self.values[rows].scatter_(2, index, value_states)
        self.keys[rows], self.values[rows] = keys, values
        return keys, values


class NoCache(PerRow):
    """Every step computes all columns: the exact decode."""

    def states(self, model: Any, canvas: Canvas, blocks: list[Block]) -> tuple[Tensor, list[int]]:
        """Evaluate the network.

        Returns:
            Final hidden states [b, Q, H], and each row's column of the first of them.
        """
        outputs = model(canvas.ids, attention_mask=canvas.attention_mask, output_logits=False)
        return outputs.last_hidden_state, [0] * len(blocks)


class BlockCache(PerRow, ABC):
    """Keys and values of other columns stay as they were when the block began: an approximation.

    A row's first step in a block computes all columns; so does every ``refresh``-th after it. Rows reach new blocks at
    their own time, so that a row's result does not depend on the others.

    Args:
        refresh: Steps after which a block computes all columns again; None leaves it to the block's start.
        multiple: Round the number of columns computed up to a multiple of this.
    """

    def __init__(self, refresh: int | None = None, multiple: int = 1) -> None:
        self.refresh = refresh
        self.multiple = multiple
        self.cache: CanvasCache | None = None

    @abstractmethod
    def stop(self, block: Block, length: int) -> int:
        """Column behind the last that ``block`` computes anew, in a row of ``length``."""

    def states(self, model: Any, canvas: Canvas, blocks: list[Block]) -> tuple[Tensor, list[int]]:
        """See :meth:`NoCache.states`."""
        if self.cache is None:
            self.cache = CanvasCache(canvas.ids.shape[1])
        first = [block.start - int(model.config.shift) for block in blocks]
        columns = self._columns(canvas, blocks, first)
        every = torch.arange(canvas.ids.shape[1], device=columns.device).expand(len(blocks), -1)
        stale = [block.step % (self.refresh or block.step + 1) == 0 for block in blocks]
        if all(stale):
            return self._evaluate(model, canvas, every, None), [0] * len(blocks)
        if not any(stale):
            return self._evaluate(model, canvas, columns, None), first
        old, new = (torch.tensor(stale, device=columns.device) == flag for flag in (True, False))
        whole = self._evaluate(model, canvas, every[old], old.nonzero()[:, 0])
        part = self._evaluate(model, canvas, columns[new], new.nonzero()[:, 0])
        hidden = part.new_empty(len(blocks), *part.shape[1:])
        hidden[old] = whole.gather(1, columns[old][..., None].expand(-1, -1, whole.shape[2]))
        hidden[new] = part
        return hidden, first

    def keep(self, rows: list[int]) -> None:
        """See :meth:`PerRow.keep`."""
        if self.cache is not None:
            self.cache.keep(rows)

    def _columns(self, canvas: Canvas, blocks: list[Block], first: list[int]) -> Tensor:
        """Columns to compute [b, Q]: shorter rows repeat their last one, which changes nothing."""
        stops = [self.stop(block, length) for block, length in zip(blocks, canvas.lengths, strict=True)]
        count = max(stop - start for stop, start in zip(stops, first, strict=True))
        count += -count % self.multiple
        device = canvas.ids.device
        columns = torch.tensor(first, device=device)[:, None] + torch.arange(count, device=device)
        return columns.clamp(max=torch.tensor(stops, device=device)[:, None] - 1)

    def _evaluate(self, model: Any, canvas: Canvas, columns: Tensor, rows: Tensor | None) -> Tensor:
        assert self.cache is not None
        ids = canvas.ids if rows is None else canvas.ids[rows]
        valid = canvas.attention_mask
        return model(
            ids.gather(1, columns),
            attention_mask=valid if valid is None or rows is None else valid[rows],
            position_ids=columns,
            past_key_values=self.cache.at(columns, rows),
            use_cache=True,
            output_logits=False,
        ).last_hidden_state


class PrefixCache(BlockCache):
    """Caches what precedes the block (Fast-dLLM, arXiv 2505.22618)."""

    def stop(self, block: Block, length: int) -> int:
        """See :meth:`BlockCache.stop`."""
        return length


class DualCache(BlockCache):
    """Caches what precedes the block and what follows it (Fast-dLLM, arXiv 2505.22618)."""

    def stop(self, block: Block, length: int) -> int:
        """See :meth:`BlockCache.stop`."""
        return block.stop


CACHES: dict[str, type] = {"prefix": PrefixCache, "dual": DualCache}

__all__ = ["CACHES", "BlockCache", "CanvasCache", "DualCache", "NoCache", "PrefixCache"]
