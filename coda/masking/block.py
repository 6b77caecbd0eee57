"""S3, block masking: whole spans are masked together, so that the model learns to write them, not to fill single gaps."""

import torch
from torch import Tensor

from coda.masking.base import Draft, MaskingStrategy
from coda.masking.schedules import Schedule, as_schedule


class BlockMasking(MaskingStrategy):
    """S3: mask contiguous spans of some rows, each maskable token still with probability exactly t (section 4.1).

    Each row draws its own span length from ``sizes``, on the device. How the spans are laid: see
    :func:`coda.masking.base.draw_spans`.

    Args:
        sizes: Span lengths to draw from, in tokens, each with the same chance.
        probability: Share of the rows with block masking, a number in [0, 1] or a schedule.
    """

    def __init__(self, sizes: list[int], probability: float | Schedule = 1.0) -> None:
        self.sizes = check_sizes("BlockMasking.sizes", sizes)
        self.probability = as_schedule("BlockMasking.probability", probability)

    def transform(self, draft: Draft, progress: Tensor, pad_token_id: int | None) -> None:
        """Choose span lengths in rows drawn with the scheduled probability."""
        choose_spans(draft, draft.row_noise() < self.probability(progress), self.sizes)

    def schedules(self) -> dict[str, Schedule]:
        """See :meth:`MaskingStrategy.schedules`."""
        return {"S3": self.probability}


def choose_spans(draft: Draft, rows: Tensor, sizes: list[int]) -> None:
    """Draw a span length from ``sizes`` for each of ``rows``, bool [B, 1]; the other rows keep theirs."""
    choice = (draft.row_noise() * len(sizes)).long()
    # Selecting by a sum of steps needs no look-up table on the device, hence no host-to-device copy.
    span = torch.full_like(choice, sizes[0])
    for i in range(1, len(sizes)):
        span = span + (choice >= i) * (sizes[i] - sizes[i - 1])
    draft.span = torch.where(rows, span, draft.span)
    draft.applied["S3"] = rows[:, 0]


def check_sizes(name: str, sizes: list[int]) -> list[int]:
    """Return ``sizes`` if they are usable span lengths.

    Raises:
        ValueError: If the list is empty or holds a length below 1; the message names the setting.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(
            f"{name} is {sizes}; give at least one span length, each 1 token or more, for example [2, 4, 8]"
        )
    return list(sizes)
