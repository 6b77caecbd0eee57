"""Hybrid decoding: an autoregressive guide checks what diffusion drafts, from left to right."""

from typing import Any

import torch
from torch import Tensor

from .cache_coda import CanvasCache
from .prediction_coda import Predictor
from .selection_coda import Candidates, CommitRule


class Guided(CommitRule):
    """Adaptive parallel decoding (APD, arXiv 2506.00413): draft a block in parallel, verify it in one causal pass.

    The target is the product of the draft's distribution to the power ``weight`` and the guide's, given all tokens to the
    left, to the power ``1 - weight``. Draft and target are drawn with the same noise; the tokens on which they agree are
    committed, and behind them the target's own. With weight 0 the result is the guide's autoregressive sample, exactly,
    whatever the draft.

    Args:
        guide: Causal language model of the same vocabulary, or the diffusion model itself, whose weights are then run
            under a causal mask. Takes ``input_ids``, a 4-dimensional ``attention_mask``, ``position_ids`` and
            ``past_key_values``.
        weight: Of the draft, in [0, 1].
        predictor: How to draw; it must keep its logits.
    """

    wanted = frozenset({"logits"})

    def __init__(self, guide: Any, weight: float, predictor: Predictor) -> None:
        self.guide = guide
        self.weight = weight
        self.predictor = predictor
        self.cache: CanvasCache | None = None
        self.known: list[int] = []  # columns of each row whose keys and values the cache holds for good
        self.drafted = self.accepted = self.nfe = 0

    def choose(self, candidates: Candidates) -> Tensor:
        """See :meth:`CommitRule.choose`."""
        draft = torch.where(candidates.eligible, candidates.tokens, candidates.ids)
        row, column = candidates.eligible.nonzero(as_tuple=True)
        logits = self._target(draft, candidates, row, column)
        tokens = self.predictor.draw(logits, candidates.token_noise[row, column])
        log_probs = logits.log_softmax(dim=-1).gather(1, tokens[:, None]).squeeze(1)
        candidates.tokens = draft.index_put((row, column), tokens)
        candidates.log_probs = candidates.log_probs.index_put((row, column), log_probs.to(candidates.log_probs.dtype))
        agrees = (candidates.tokens == draft).int().cumprod(dim=1)
        reached = torch.nn.functional.pad(agrees, (1, 0), value=1)[:, :-1].bool()  # all before it agree
        self._count(agrees, candidates)
        return candidates.eligible & reached

    def keep(self, rows: list[int]) -> None:
        """See :meth:`PerRow.keep`."""
        if self.cache is not None:
            self.known = [self.known[row] for row in rows]
            self.cache.keep(rows)

    def _target(self, draft: Tensor, candidates: Candidates, row: Tensor, column: Tensor) -> Tensor:
        """Logits of the target distribution for every eligible token [M, V]."""
        if self.cache is None:
            self.cache = CanvasCache(draft.shape[1])
            self.known = [0] * len(draft)
        stops = [max(block.stop - 1, 1) for block in candidates.blocks]
        first = [min(known, stop - 1) for known, stop in zip(self.known, stops, strict=True)]
        count = max(stop - start for stop, start in zip(stops, first, strict=True))
        start, stop = (torch.tensor(x, device=draft.device) for x in (first, stops))
        # Shorter rows repeat their last column, which changes nothing.
        columns = (start[:, None] + torch.arange(count, device=draft.device)).clamp(max=stop[:, None] - 1)
        logits = self._causal(draft.gather(1, columns), columns)[row, column - 1 - start[row]]
        assert candidates.logits is not None
        guided = logits.to(candidates.logits.dtype).log_softmax(dim=-1)
        mixed = self.weight * candidates.logits.log_softmax(dim=-1) + (1 - self.weight) * guided
        mixed[:, self.predictor.mask_id] = -torch.inf
        return mixed

    def _causal(self, ids: Tensor, columns: Tensor) -> Tensor:
        """The guide's logits [b, Q, V] for ``ids`` at ``columns`` [b, Q], given all tokens to their left."""
        assert self.cache is not None
        self.nfe += 1
        dtype = next(self.guide.parameters()).dtype
        hidden = torch.arange(self.cache.length, device=ids.device) > columns[..., None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=ids.device).masked_fill(hidden, torch.finfo(dtype).min)
        outputs = self.guide(
            input_ids=ids,
            attention_mask=mask[:, None],
            position_ids=columns,
            past_key_values=self.cache.at(columns),
            use_cache=True,
        )
        return outputs.logits

    def _count(self, agrees: Tensor, candidates: Candidates) -> None:
        """Remember how far the cache is right: up to the first token that the target changed, or the last one computed."""
        limit = torch.tensor([max(block.stop - 1, 1) for block in candidates.blocks], device=agrees.device)
        known = torch.minimum(agrees.sum(dim=1), limit)
        eligible = candidates.eligible
        totals = torch.stack([eligible.sum(dim=1), (eligible & agrees.bool()).sum(dim=1), known]).tolist()
        self.drafted += sum(totals[0])
        self.accepted += sum(totals[1])
        self.known = totals[2]


__all__ = ["Guided"]
