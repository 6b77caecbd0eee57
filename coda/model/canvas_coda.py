"""The canvas: the tokens being denoised, with what is given, masked and committed."""

from typing import Any

import torch
from torch import Tensor

from .blocks_coda import PerRow


class Canvas(PerRow):
    """A batch of rows, every row moved to the left edge so that padding on either side changes nothing.

    Rows that are finished leave; ``ids``, ``valid``, ``masked``, ``generated`` and ``log_probs`` [b, L] hold the others.

    Args:
        inputs: int64 [B, P], prompts, padded left or right.
        attention_mask: [B, P], zero at padding; None means that there is none.
        new_tokens: Masked tokens to append.
        mask_id: Id of the absorbing state.
        multiple: Round the length up to a multiple of this, with padding.
    """

    def __init__(
        self, inputs: Tensor, attention_mask: Tensor | None, new_tokens: int, mask_id: int, multiple: int = 1
    ) -> None:
        given = torch.ones_like(inputs) if attention_mask is None else attention_mask
        self.width = inputs.shape[1] + new_tokens
        spare = -self.width % multiple
        layout = torch.nn.functional.pad(inputs, (0, new_tokens), value=mask_id)
        layout = torch.nn.functional.pad(layout, (0, spare), value=mask_id)
        valid = torch.nn.functional.pad(given.bool(), (0, new_tokens), value=True)
        valid = torch.nn.functional.pad(valid, (0, spare), value=False)
        self.mask_id = mask_id
        self.order = (~valid).int().argsort(dim=1, stable=True)
        self.ids = layout.gather(1, self.order)
        self.valid = valid.gather(1, self.order)
        self.masked = (self.ids == mask_id) & self.valid
        self.generated = self.masked
        self.log_probs = torch.zeros(self.ids.shape, device=inputs.device)
        self.rows = torch.arange(len(inputs), device=inputs.device)
        self._all_ids, self._all_log_probs = self.ids.clone(), self.log_probs.clone()
        self.lengths = self.valid.sum(dim=1).tolist()

    @property
    def attention_mask(self) -> Tensor | None:
        """bool [b, L], or None if no row has padding."""
        return self.valid if min(self.lengths) < self.ids.shape[1] else None

    @property
    def tail(self) -> Tensor:
        """Generated tokens behind the last given one, bool [b, L]: where a row may end."""
        given_after = (self.valid & ~self.generated).int().flip(1).cumsum(dim=1).flip(1)
        return self.generated & (given_after == 0)

    @property
    def committed(self) -> Tensor:
        """How many columns from the left hold no masked token, int64 [b]."""
        return (self.masked.int().cumsum(dim=1) == 0).sum(dim=1)

    def check(self, config: Any, guided: bool = False) -> None:
        """Raise ValueError if some row cannot be decoded by a model of ``config``, with a guide or without."""
        if not 0 <= self.mask_id < config.vocab_size:
            raise ValueError(
                f"mask_token_id is {self.mask_id}, outside the model's vocabulary of {config.vocab_size}; give the id of "
                "the tokenizer's mask token, and grow the embedding if it has no row for it"
            )
        if not bool(self.masked.any()):
            raise ValueError(
                "nothing to generate: the prompt fills the canvas; raise max_new_tokens, or mask part of it"
            )
        if max(self.lengths) > config.max_position_embeddings:
            raise ValueError(
                f"prompt and new tokens take {max(self.lengths)} positions, the model has "
                f"{config.max_position_embeddings}; shorten the prompt or lower max_new_tokens"
            )
        if (config.shift or guided) and bool(self.masked[:, 0].any()):
            row = int(self.masked[:, 0].nonzero()[0])
            raise ValueError(
                f"prompt {row} starts with a masked token, which nothing predicts in a model with shifted logits "
                "or under a guide; put a token before it, for example <|endoftext|>"
            )

    def commit(self, chosen: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        """Write ``tokens`` with their ``log_probs`` where ``chosen``, all [b, L]; nothing else changes."""
        self.ids = torch.where(chosen, tokens, self.ids)
        self.log_probs = torch.where(chosen, log_probs.to(self.log_probs.dtype), self.log_probs)
        self.masked = self.masked & ~chosen

    def remask(self, chosen: Tensor) -> None:
        """Make generated tokens masks again where ``chosen``, bool [b, L]."""
        self.ids = self.ids.masked_fill(chosen, self.mask_id)
        self.masked = self.masked | chosen

    def cut(self, ends: Tensor, pad_id: int) -> None:
        """Fill generated tokens from column ``ends`` [b] on with padding: they are never decoded."""
        behind = self.generated & (torch.arange(self.ids.shape[1], device=self.ids.device) >= ends[:, None])
        self.ids = self.ids.masked_fill(behind, pad_id)
        self.log_probs = self.log_probs.masked_fill(behind, 0.0)
        self.masked = self.masked & ~behind

    def keep(self, rows: list[int]) -> None:
        """See :meth:`PerRow.keep`."""
        self._store()
        index = torch.tensor(rows, device=self.ids.device, dtype=torch.long)
        for name in ("ids", "valid", "masked", "generated", "log_probs", "rows"):
            setattr(self, name, getattr(self, name)[index])
        self.lengths = [self.lengths[row] for row in rows]

    def restore(self) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities of all rows [B, P + new_tokens] in the layout of the input."""
        self._store()
        both = self._all_ids, self._all_log_probs
        ids, log_probs = (torch.empty_like(x).scatter_(1, self.order, x)[:, : self.width] for x in both)
        return ids, log_probs

    def _store(self) -> None:
        self._all_ids.index_copy_(0, self.rows, self.ids)
        self._all_log_probs.index_copy_(0, self.rows, self.log_probs)


__all__ = ["Canvas"]
