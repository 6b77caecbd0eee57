"""The one decoding loop: every method is a component of it."""

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .blocks_coda import Block, Plan
from .cache_coda import BlockCache, NoCache
from .canvas_coda import Canvas
from .prediction_coda import Prediction, Predictor
from .remasking_coda import Committed, Remasking
from .sampling_coda import row_noise
from .selection_coda import Candidates, CommitRule
from .stopping_coda import Stopping


@dataclass
class Components:
    """What a decoding is made of.

    Attributes:
        predictor: Draws a token for every masked position.
        confidence: Orders them; see ``CONFIDENCE``.
        alg_temp: Gumbel noise in that order.
        rule: How many of them are committed.
        cache: Which columns are computed.
        remasking: Which tokens become masks again.
        stopping: When a row is finished.
    """

    predictor: Predictor
    confidence: Callable[[Prediction], Tensor]
    alg_temp: float
    rule: CommitRule
    cache: NoCache | BlockCache
    remasking: Remasking | None
    stopping: Stopping


@dataclass
class Decoder:
    """Takes denoising steps until every row is finished.

    Args:
        model: Called for hidden states.
        canvas: Holds the tokens.
        plan: Holds the blocks of each row.
        parts: The components.
        seeds: Of each row, int64 [B].
        pad_id: Stands behind a row's end.
        window: Columns whose logits are computed at every step, a fixed number so that no shape changes (XLA); None
            computes those of masked tokens only, and lets finished rows leave the batch.
    """

    model: Any
    canvas: Canvas
    plan: Plan
    parts: Components
    seeds: Tensor
    pad_id: int
    window: int | None = None
    steps: int = 0
    row_nfe: list[int] = field(default_factory=list)
    _current: Tensor | None = None

    def __post_init__(self) -> None:
        self._rows = list(range(len(self.plan.done)))
        self.row_nfe = [0] * len(self._rows)
        self._retire()

    @property
    def finished(self) -> bool:
        """Whether all rows are."""
        return all(self.plan.done)

    @property
    def running(self) -> list[int]:
        """Which rows of the input are not finished."""
        return [row for row, done in zip(self._rows, self.plan.done, strict=True) if not done]

    def drop(self, rows: Collection[int]) -> None:
        """Give up these rows of the input: nothing more is computed for them, and they stay as they are."""
        self.plan.done = [done or row in rows for row, done in zip(self._rows, self.plan.done, strict=True)]
        self._retire()

    def settled(self) -> list[int]:
        """How many columns from the left will not change any more, of each row of the input, moved to the left edge."""
        columns = [self.canvas.ids.shape[1]] * len(self.row_nfe)
        blocks = self.plan.blocks
        left = torch.tensor([block.left for block in blocks], device=self.seeds.device)
        for row, reached in zip(self._rows, self._settled(left, blocks).tolist(), strict=True):
            columns[row] = reached
        return columns

    def step(self) -> bool:
        """Take a denoising step; return whether a block of some row has ended with it."""
        blocks = self.plan.blocks
        inside = self._inside(blocks)
        if self.parts.remasking is not None:
            self._remask(self.parts.remasking, inside, blocks)
        candidates = self._candidates(inside, blocks)
        self._current = candidates.log_probs
        chosen = self.parts.rule.choose(candidates)
        self.canvas.commit(chosen, candidates.tokens, candidates.log_probs)
        _end_of_step(self.seeds.device)
        left, ended = self._outcome(inside, blocks)
        self.steps += 1
        some = self.plan.advance(left, ended)
        self._retire()
        return some

    def _inside(self, blocks: list[Block]) -> Tensor:
        """The columns of each row's block, bool [b, L]; none of a row that is done."""
        device = self.canvas.ids.device
        columns = torch.arange(self.canvas.ids.shape[1], device=device)
        done = self.plan.done
        ends = [(0, 0) if over else (block.start, block.stop) for block, over in zip(blocks, done, strict=True)]
        spans = torch.tensor(ends, device=device)
        return (columns >= spans[:, :1]) & (columns < spans[:, 1:])

    def _remask(self, remasking: Remasking, inside: Tensor, blocks: list[Block]) -> None:
        canvas = self.canvas
        revisable = canvas.generated & ~canvas.masked & inside
        noise = row_noise(self.seeds, -1 - self.steps, canvas.ids.shape[1])
        chosen = remasking.choose(Committed(revisable, canvas.log_probs, self._current, noise, blocks))
        canvas.remask(chosen)
        for block, count in zip(blocks, (canvas.masked & inside).sum(dim=1).tolist(), strict=True):
            block.left = count

    def _candidates(self, inside: Tensor, blocks: list[Block]) -> Candidates:
        """Evaluate the network and predict the masked tokens of the blocks."""
        canvas, parts = self.canvas, self.parts
        eligible = canvas.masked & inside
        hidden, first = parts.cache.states(self.model, canvas, blocks)
        index = self._index(eligible, inside, blocks)
        row, column = index // canvas.ids.shape[1], index % canvas.ids.shape[1]
        origin = torch.tensor(first, device=index.device)
        place = row * hidden.shape[1] + column - origin[row] - int(self.model.config.shift)
        states = hidden.flatten(0, 1).index_select(0, place)
        token_noise = row_noise(self.seeds, 2 * self.steps, canvas.ids.shape[1])
        prediction = parts.predictor(states, token_noise.flatten()[index], index, canvas.ids)
        noise = row_noise(self.seeds, 2 * self.steps + 1, canvas.ids.shape[1])
        score = self._spread(parts.confidence(prediction), index)
        if parts.alg_temp > 0:
            score = score / parts.alg_temp - (-noise.clamp(min=1e-12).log()).log()
        return Candidates(
            eligible=eligible,
            tokens=self._spread(prediction.tokens, index),
            log_probs=self._spread(prediction.log_probs, index),
            score=score.masked_fill(~eligible, -torch.inf),
            noise=noise,
            token_noise=token_noise,
            ids=canvas.ids,
            blocks=blocks,
            entropy=None if prediction.entropy is None else self._spread(prediction.entropy, index),
            logits=prediction.logits,
        )

    def _index(self, eligible: Tensor, inside: Tensor, blocks: list[Block]) -> Tensor:
        """Flat canvas positions to predict, int64 [M]."""
        if self.window is not None:
            spans = torch.tensor([(block.start, block.stop) for block in blocks], device=eligible.device)
            columns = spans[:, :1] + torch.arange(self.window, device=eligible.device)
            base = torch.arange(len(blocks), device=eligible.device)[:, None] * eligible.shape[1]
            return (base + columns.clamp(max=spans[:, 1:] - 1)).flatten()  # short blocks repeat their last column
        if self.parts.remasking is not None and self.parts.remasking.reads_committed:
            return (inside & self.canvas.generated).flatten().nonzero().squeeze(1)
        # The number is known on the host: no step waits for the device to count.
        return eligible.flatten().nonzero_static(size=sum(block.left for block in blocks)).squeeze(1)

    def _spread(self, values: Tensor, index: Tensor) -> Tensor:
        """Put ``values`` [M] at flat positions ``index`` of an otherwise empty canvas [b, L]."""
        empty = torch.zeros(self.canvas.ids.numel(), dtype=values.dtype, device=values.device)
        return empty.index_copy(0, index, values).view_as(self.canvas.ids)

    def _outcome(self, inside: Tensor, blocks: list[Block]) -> tuple[list[int], list[bool]]:
        """Masked tokens left in each block, and which rows have ended. Reads from the device at most once."""
        known = [self.parts.rule.left_after(block) for block in blocks]
        reads = None in known or self.window is not None or bool(self.parts.stopping)
        if not reads:
            return [count or 0 for count in known], [False] * len(blocks)
        left = (self.canvas.masked & inside).sum(dim=1)
        length = self.canvas.ids.shape[1]
        ends = torch.full_like(left, length)
        if self.parts.stopping:
            ends = self.parts.stopping.ends(self.canvas, self._settled(left, blocks))
            self.canvas.cut(ends, self.pad_id)
            left = (self.canvas.masked & inside).sum(dim=1)
        counts, columns = torch.stack([left, ends]).tolist()
        return counts, [column < length for column in columns]

    def _settled(self, left: Tensor, blocks: list[Block]) -> Tensor:
        """How many columns from the left of each row will not change any more, int64 [b]."""
        if self.parts.remasking is None:
            return self.canvas.committed
        start = torch.tensor([block.start for block in blocks], device=left.device)
        return torch.where(left == 0, self.canvas.committed, start)

    def _retire(self) -> None:
        """Let finished rows leave the batch, so that nothing is computed for them."""
        staying = [row for row, done in enumerate(self.plan.done) if not done]
        for row, nfe in zip(self._rows, self.plan.nfe, strict=True):
            self.row_nfe[row] = nfe
        if self.window is not None or len(staying) == len(self._rows):
            return
        self._rows = [self._rows[row] for row in staying]
        index = torch.tensor(staying, device=self.seeds.device, dtype=torch.long)
        self.seeds = self.seeds[index]
        self._current = None if self._current is None else self._current[index]
        parts = self.parts
        for holder in (self.canvas, self.plan, parts.rule, parts.cache, parts.remasking, parts.stopping):
            if holder is not None:
                holder.keep(staying)


def _end_of_step(device: torch.device) -> None:
    """Tell XLA to run what it has recorded: a graph that grew from step to step would be compiled at each."""
    if device.type == "xla":
        sys.modules["torch_xla"].sync()  # there is no such device without it


__all__ = ["Components", "Decoder"]
