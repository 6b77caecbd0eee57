"""S2, the truncated suffix: rows end early, so the model meets texts of every length."""

import torch
from torch import Tensor

from coda.masking.base import Draft, MaskingStrategy
from coda.masking.schedules import Schedule, as_schedule


class TruncatedSuffix(MaskingStrategy):
    """S2: replace a random suffix of some rows by padding that is never a target (arXiv 2510.03270, section 4.1).

    The suffix starts at a position uniform in 1..L-1.

    Args:
        probability: Share of the rows that are truncated, a number in [0, 1] or a schedule.
        hide_padding: Keep attention away from the padding. Off in the report: the model sees where the text ends.
    """

    def __init__(self, probability: float | Schedule = 1.0, hide_padding: bool = False) -> None:
        self.probability = as_schedule("TruncatedSuffix.probability", probability)
        self.hide_padding = hide_padding

    def transform(self, draft: Draft, progress: Tensor, pad_token_id: int | None) -> None:
        """Truncate rows drawn with the scheduled probability."""
        truncate_suffix(draft, draft.row_noise() < self.probability(progress), pad_token_id, self.hide_padding)

    def schedules(self) -> dict[str, Schedule]:
        """See :meth:`MaskingStrategy.schedules`."""
        return {"S2": self.probability}


def truncate_suffix(draft: Draft, rows: Tensor, pad_token_id: int | None, hide_padding: bool) -> None:
    """Turn a random suffix into unmaskable padding in ``rows``, bool [B, 1].

    Raises:
        ValueError: If there is no padding token to write.
    """
    if pad_token_id is None:
        raise ValueError(
            "truncating suffixes (S2) needs a padding token, but pad_token_id is None; set the tokenizer's"
        )
    suffix = (draft.positions() >= draft.split_point()) & rows
    draft.target_ids = torch.where(suffix, pad_token_id, draft.target_ids)
    draft.maskable = draft.maskable & ~suffix
    draft.applied["S2"] = rows[:, 0]
    if hide_padding:
        draft.attention_mask = ~suffix if draft.attention_mask is None else draft.attention_mask & ~suffix
