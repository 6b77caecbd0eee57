"""S1, the unmaskable prefix: part of the row is a prompt, as at inference."""

from torch import Tensor

from coda.masking.base import Draft, MaskingStrategy
from coda.masking.schedules import Schedule, as_schedule


class UnmaskablePrefix(MaskingStrategy):
    """S1: protect a random prefix of some rows from masking (arXiv 2510.03270, section 4.1).

    The length of the prefix is uniform in 1..L-1.

    Args:
        probability: Share of the rows that get a prefix, a number in [0, 1] or a schedule.
    """

    def __init__(self, probability: float | Schedule = 1.0) -> None:
        self.probability = as_schedule("UnmaskablePrefix.probability", probability)

    def transform(self, draft: Draft, progress: Tensor, pad_token_id: int | None) -> None:
        """Protect a prefix in rows drawn with the scheduled probability."""
        protect_prefix(draft, draft.row_noise() < self.probability(progress))

    def schedules(self) -> dict[str, Schedule]:
        """See :meth:`MaskingStrategy.schedules`."""
        return {"S1": self.probability}


def protect_prefix(draft: Draft, rows: Tensor) -> None:
    """Make a random prefix unmaskable in ``rows``, bool [B, 1]."""
    prefix = draft.positions() < draft.split_point()
    draft.maskable = draft.maskable & ~(prefix & rows)
    draft.applied["S1"] = rows[:, 0]
