"""Where each row stands: the blocks that are decoded one after the other (semi-autoregressive), and their steps."""

from dataclasses import dataclass, field
from itertools import accumulate, pairwise


@dataclass
class Block:
    """A span of canvas columns whose masked tokens are decoded together.

    Attributes:
        start: First column, which is masked.
        stop: Column behind the last.
        masked: Masked tokens in it when decoding began.
        steps: Denoising steps that a schedule gives it.
        step: Denoising steps taken.
        left: Masked tokens in it now.
    """

    start: int
    stop: int
    masked: int
    steps: int
    step: int = 0
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.masked

    def time(self, eps: float) -> tuple[float, float]:
        """Noise level before and after the current step, falling linearly from 1 to ``eps``; 0 after the last step."""
        step = min(self.step, self.steps - 1)
        before, after = (1 - (1 - eps) * i / self.steps for i in (step, step + 1))
        return before, (after if step < self.steps - 1 else 0.0)


def split_blocks(masked: list[int], block_length: int | None, steps: int | None) -> list[Block]:
    """Cut a row into blocks (arXiv 2502.09992, section 2.4: semi-autoregressive remasking).

    A block begins at the first masked column that no earlier block holds, so spans to fill in are treated like new text.

    Args:
        masked: Masked columns of the row, ascending.
        block_length: Columns per block; None makes one block of all.
        steps: Denoising steps of the row; None gives one to every masked token.

    Raises:
        ValueError: If there are fewer steps than blocks.
    """
    spans: list[list[int]] = []
    for column in masked:
        if spans and (block_length is None or column < spans[-1][0] + block_length):
            spans[-1].append(column)
        else:
            spans.append([column])
    counts = [len(span) for span in spans]
    if steps is not None and steps < len(spans):
        raise ValueError(
            f"steps is {steps}, but a row has {len(spans)} blocks of block_length {block_length}, each of which takes a "
            "step at least; raise one of them"
        )
    paces = counts if steps is None else _share_out(steps, counts)
    rows = zip(spans, counts, paces, strict=True)
    return [Block(span[0], span[-1] + 1, count, pace) for span, count, pace in rows]


def _share_out(steps: int, counts: list[int]) -> list[int]:
    """Divide ``steps`` in proportion to ``counts``, at least one each."""
    spare, total = steps - len(counts), sum(counts)
    marks = [spare * reached // total for reached in accumulate(counts, initial=0)] if counts else [0]
    return [1 + after - before for before, after in pairwise(marks)]


class PerRow:
    """What remembers something of each row. Rows leave the batch when they are finished."""

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but ``rows``."""


class Plan(PerRow):
    """The current block of every row in the batch. All of it is on the host: no step waits for the device to learn it.

    Args:
        masked: Masked columns of each row, ascending.
        block_length: See :func:`split_blocks`.
        steps: See :func:`split_blocks`.
    """

    def __init__(self, masked: list[list[int]], block_length: int | None, steps: int | None) -> None:
        self.ahead = [split_blocks(columns, block_length, steps)[::-1] for columns in masked]
        self.nfe = [0] * len(masked)  # network evaluations of each row that has not left
        self.done = [not blocks for blocks in self.ahead]
        for blocks in self.ahead:
            if not blocks:  # a row without masks stands somewhere, too
                blocks.append(Block(1, 2, 0, 1))

    @property
    def blocks(self) -> list[Block]:
        """The current block of every row; the last one if the row is done."""
        return [blocks[-1] for blocks in self.ahead]

    def advance(self, left: list[int], finished: list[bool]) -> bool:
        """Count a denoising step; return whether some block has ended.

        Args:
            left: Masked tokens of each current block.
            finished: Which rows need no further block.
        """
        some = False
        for row, blocks in enumerate(self.ahead):
            if self.done[row]:
                continue
            self.nfe[row] += 1
            blocks[-1].step += 1
            blocks[-1].left = left[row]
            self.done[row] = finished[row] or (left[row] == 0 and len(blocks) == 1)
            some |= left[row] == 0
            if left[row] == 0 and not self.done[row]:
                blocks.pop()
        return some

    def keep(self, rows: list[int]) -> None:
        """See :meth:`PerRow.keep`."""
        for name in ("ahead", "nfe", "done"):
            setattr(self, name, [getattr(self, name)[row] for row in rows])


__all__ = ["Block", "PerRow", "Plan", "split_blocks"]
