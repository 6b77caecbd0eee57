"""The report's composition of S1, S2 and S3, each with its own schedule."""

from torch import Tensor

from coda.masking.base import Draft, MaskingStrategy
from coda.masking.block import check_sizes, choose_spans
from coda.masking.prefix import protect_prefix
from coda.masking.schedules import Schedule, as_schedule
from coda.masking.truncation import truncate_suffix


class ProgressiveMasking(MaskingStrategy):
    """S1, S2 and S3 together over random masking (arXiv 2510.03270, section 4.1 and table 3).

    The proportions are literal: with S1 20%, S2 20%, S3 25%, a fifth of the rows get an unmaskable prefix, another,
    disjoint fifth lose their suffix, and, independently of those, a quarter are masked in blocks.

    Args:
        prefix: Share of the rows with an unmaskable prefix (S1), a number in [0, 1] or a schedule.
        truncation: Share of the rows with a truncated suffix (S2), a number in [0, 1] or a schedule.
        block: Share of the rows with block masking (S3), a number in [0, 1] or a schedule.
        block_sizes: Span lengths of S3, in tokens.
        hide_padding: Keep attention away from the padding that S2 writes.

    Raises:
        ValueError: If S1 and S2, which are disjoint, exceed 100% together at some point of training.
    """

    def __init__(
        self,
        prefix: float | Schedule,
        truncation: float | Schedule,
        block: float | Schedule,
        block_sizes: list[int],
        hide_padding: bool = False,
    ) -> None:
        self.prefix = as_schedule("ProgressiveMasking.prefix", prefix)
        self.truncation = as_schedule("ProgressiveMasking.truncation", truncation)
        self.block = as_schedule("ProgressiveMasking.block", block)
        self.block_sizes = check_sizes("ProgressiveMasking.block_sizes", block_sizes)
        self.hide_padding = hide_padding
        check_disjoint(self.prefix, self.truncation)

    def transform(self, draft: Draft, progress: Tensor, pad_token_id: int | None) -> None:
        """Draw once for the disjoint pair S1 and S2, once for S3."""
        prefix, truncation = self.prefix(progress), self.truncation(progress)
        noise = draft.row_noise()
        protect_prefix(draft, noise < prefix)
        truncate_suffix(draft, (noise >= prefix) & (noise < prefix + truncation), pad_token_id, self.hide_padding)
        choose_spans(draft, draft.row_noise() < self.block(progress), self.block_sizes)

    def schedules(self) -> dict[str, Schedule]:
        """See :meth:`MaskingStrategy.schedules`."""
        return {"S1": self.prefix, "S2": self.truncation, "S3": self.block}


def check_disjoint(prefix: Schedule, truncation: Schedule, points: int = 1000) -> None:
    """Raise ValueError if ``prefix + truncation`` exceeds 1 at one of ``points + 1`` even steps of training."""
    for i in range(points + 1):
        total = prefix(i / points) + truncation(i / points)
        if total > 1.0 + 1e-9:
            raise ValueError(
                f"ProgressiveMasking: prefix and truncation (S1 and S2) are disjoint shares of the rows, but at "
                f"{i / points:.1%} of training they add up to {total:.1%}; lower them to 100% or less together"
            )
