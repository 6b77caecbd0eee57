"""When a row is finished before its canvas is full: what follows the end is never computed."""

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from .blocks_coda import PerRow
from .canvas_coda import Canvas


class Stopping(PerRow):
    """Finds the end of rows whose tokens are all committed up to it, in the text behind the last given token.

    A gap between given tokens never ends a row. What stands before the end is what the whole decode would have written.

    Args:
        end_ids: Tokens that end a row, itself included.
        criteria: transformers' stopping criteria, called on each row's committed tokens one by one, from the left; the
            row ends with the token for which they hold.
    """

    def __init__(self, end_ids: list[int], criteria: StoppingCriteriaList | None) -> None:
        self.end_ids = end_ids
        self.criteria = criteria or StoppingCriteriaList()
        self.seen: list[int] | None = None  # columns of each row that the criteria have seen

    def __bool__(self) -> bool:
        return bool(self.end_ids or self.criteria)

    def ends(self, canvas: Canvas, settled: Tensor) -> Tensor:
        """The column behind each row's end, int64 [b]; the canvas's length where there is none yet.

        Args:
            canvas: The canvas after a denoising step.
            settled: How many columns from the left will not change any more, int64 [b].
        """
        length = canvas.ids.shape[1]
        found = torch.isin(canvas.ids, torch.tensor(self.end_ids, device=canvas.ids.device, dtype=torch.long))
        found &= canvas.tail & ~canvas.masked
        columns = torch.arange(length, device=canvas.ids.device)
        end = torch.where(found, columns + 1, length).min(dim=1).values
        end = torch.where(end <= settled, end, length)
        return torch.minimum(end, self._by_criteria(canvas, settled)) if self.criteria else end

    def keep(self, rows: list[int]) -> None:
        """See :meth:`PerRow.keep`."""
        if self.seen is not None:
            self.seen = [self.seen[row] for row in rows]

    def _by_criteria(self, canvas: Canvas, settled: Tensor) -> Tensor:
        length, tail = canvas.ids.shape[1], canvas.tail
        if self.seen is None:  # the prompt is no reason to stop
            self.seen = torch.where(tail.any(dim=1), tail.int().argmax(dim=1), length).tolist()
        ends = [length] * len(canvas.ids)
        for row, reached in enumerate(torch.minimum(settled, canvas.valid.sum(dim=1)).tolist()):
            while self.seen[row] < reached and ends[row] == length:
                self.seen[row] += 1
                prefix = canvas.ids[row : row + 1, : self.seen[row]]
                if bool(self.criteria(prefix, None).all()):
                    ends[row] = self.seen[row]
        return torch.tensor(ends, device=canvas.ids.device)


__all__ = ["Stopping"]
