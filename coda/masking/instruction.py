"""Instruction masking: the prompt is given, the response is written."""

import torch
from torch import Tensor

from coda.masking.base import Draft, MaskingStrategy


class InstructionMasking(MaskingStrategy):
    """Mask the response, and at first a part of the prompt too (arXiv 2510.03270, section 4; post-training).

    The prompt is what stands before a row's first maskable token. Of its n tokens the first ``floor(r * n)`` are
    protected, where r = progress / ramp, up to 1: training moves from writing everything to answering a prompt. The rest
    of the prompt is masked and scored like the response. A row's first token, which nothing predicts, always stays.

    Args:
        ramp: Share of training over which the protection grows; 0 protects the whole prompt from the start. The report
            takes the first epoch of ten, hence 0.1.
    """

    def __init__(self, ramp: float = 0.0) -> None:
        if not 0.0 <= ramp <= 1.0:
            raise ValueError(f"InstructionMasking.ramp is {ramp}; give a share of training between 0 and 1, e.g. 0.1")
        self.ramp = ramp

    def transform(self, draft: Draft, progress: Tensor, pad_token_id: int | None) -> None:
        """Make the unprotected part of the prompt maskable."""
        maskable = draft.maskable.long()
        prompt = (maskable.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
        # In a row without a response there is nothing to learn, and so no prompt.
        answered = maskable.sum(dim=1, keepdim=True) > 0
        share = torch.ones_like(progress) if self.ramp == 0 else (progress / self.ramp).clamp(max=1.0)
        kept = (share * prompt).floor().long().clamp(min=1)
        position = draft.positions()
        open_prompt = (position >= kept) & (position < prompt) & answered
        draft.maskable = draft.maskable | open_prompt
        draft.applied["prompt"] = open_prompt.any(dim=1)
