"""The interface of masking strategies and the one routine that draws masks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from coda.masking.schedules import Schedule
from coda.model.sampling_coda import row_noise


@dataclass
class MaskedBatch:
    """A batch after masking. B rows of L tokens.

    Attributes:
        noisy_input_ids: int64 [B, L], the model's input: ``target_ids`` with the masked tokens replaced.
        masked: bool [B, L], the mask that was drawn; these positions carry the loss.
        target_ids: int64 [B, L], the clean tokens (differs from the batch's input where a suffix became padding).
        maskable: bool [B, L], what could have been drawn.
        attention_mask: bool [B, L], tokens that attention may look at, or None for all of them.
        applied: For each named transformation (S1, S2, S3) a bool [B] of the rows it was applied to.
    """

    noisy_input_ids: Tensor
    masked: Tensor
    target_ids: Tensor
    maskable: Tensor
    attention_mask: Tensor | None = None
    applied: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Draft:
    """What a strategy edits before the mask is drawn.

    Attributes:
        target_ids: int64 [B, L].
        maskable: bool [B, L].
        span: int64 [B, 1], the length of the spans that are masked together; 1 masks tokens independently.
        generator: Source of all randomness, on the batch's device; None uses the device's default generator.
        seeds: int64 [B], the source of all randomness instead: a row's draws depend on its own seed alone. Or None.
        attention_mask: bool [B, L] or None.
        applied: See :class:`MaskedBatch`.
        draws: How often noise was drawn.
    """

    target_ids: Tensor
    maskable: Tensor
    span: Tensor
    generator: torch.Generator | None = None
    seeds: Tensor | None = None
    attention_mask: Tensor | None = None
    applied: dict[str, Tensor] = field(default_factory=dict)
    draws: int = 0

    def uniform(self, rows: int, length: int) -> Tensor:
        """Draw float32 noise [rows, length], uniform in [0, 1), on the batch's device."""
        self.draws += 1
        if self.seeds is not None:
            return row_noise(self.seeds, self.draws, length)
        # The dtype is named because half-precision training makes another one the default, with 8 bits of noise.
        return torch.rand(rows, length, generator=self.generator, device=self.target_ids.device, dtype=torch.float32)

    def row_noise(self) -> Tensor:
        """Draw one uniform number per row, [B, 1]."""
        return self.uniform(self.target_ids.shape[0], 1)

    def positions(self) -> Tensor:
        """Column indices, int64 [1, L]."""
        return torch.arange(self.target_ids.shape[1], device=self.target_ids.device)[None]

    def split_point(self) -> Tensor:
        """Draw one position per row, uniform in 1..L-1, int64 [B, 1] (1 in rows of a single token)."""
        length = self.target_ids.shape[1]
        return 1 + (self.row_noise() * (length - 1)).long().clamp_(max=max(length - 2, 0))


class MaskingStrategy(ABC):
    """Draws the noisy input x_t from the clean tokens x_0 (arXiv 2510.03270, section 4.1 and eq. 6).

    A strategy never decides *how much* is masked: every maskable token is masked with probability exactly ``t``.
    It decides what is maskable (S1, S2) and which tokens are masked together (S3). Subclasses implement
    :meth:`transform`. All shapes are static, all randomness is drawn on the device, nothing waits for the device, and
    memory is O(B L).
    """

    def __call__(
        self,
        input_ids: Tensor,
        maskable: Tensor,
        t: Tensor,
        progress: float | Tensor,
        *,
        mask_token_id: int,
        pad_token_id: int | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
    ) -> MaskedBatch:
        """Mask a batch.

        Args:
            input_ids: int64 [B, L], clean tokens.
            maskable: bool [B, L], tokens that may be masked (not prompts, not padding).
            t: float [B] in (0, 1], the masking probability of each row.
            progress: Share of training done, in [0, 1]: a float, or on XLA a float tensor of shape [1].
            mask_token_id: Id of the absorbing state.
            pad_token_id: Id of padding; needed only by strategies that can truncate.
            generator: Seeded generator on the device of ``input_ids``, for reproducible masks.
            seeds: int64 [B]: instead, a row's mask becomes a pure function of its seed, in whatever batch it is.
        """
        draft = Draft(input_ids, maskable, torch.ones_like(input_ids[:, :1]), generator, seeds)
        if not isinstance(progress, Tensor):
            progress = torch.full((1,), progress, device=input_ids.device, dtype=torch.float32)
        self.transform(draft, progress, pad_token_id)
        masked = draw_spans(draft, t) & draft.maskable
        return MaskedBatch(
            noisy_input_ids=torch.where(masked, mask_token_id, draft.target_ids),
            masked=masked,
            target_ids=draft.target_ids,
            maskable=draft.maskable,
            attention_mask=draft.attention_mask,
            applied=draft.applied,
        )

    @abstractmethod
    def transform(self, draft: Draft, progress: Tensor, pad_token_id: int | None) -> None:
        """Edit ``draft`` in place: restrict ``maskable``, rewrite ``target_ids`` or set ``span`` for some rows."""

    def schedules(self) -> dict[str, Schedule]:
        """The probabilities that change over training, by the name under which they are logged."""
        return {}


def draw_spans(draft: Draft, t: Tensor) -> Tensor:
    """Draw a bool [B, L] mask in which every token is True with probability exactly ``t`` of its row.

    Each row is tiled by spans of its own length ``k = draft.span`` from a random offset, and every tile is masked as a
    whole with probability t. A token belongs to exactly one tile, so its rate is t wherever it stands, at the edges of
    a row and of a maskable region too. With k = 1 this is independent masking. O(B L) memory.
    """
    span = draft.span
    offset = (draft.row_noise() * span).long()
    tile = (draft.positions() + offset) // span
    noise = draft.uniform(*draft.target_ids.shape)
    return noise.gather(1, tile) < t[:, None]
