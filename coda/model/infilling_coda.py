"""Infilling of gaps whose length nobody has told: several lengths are tried at once, and the best text is kept."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class Infilling(ModelOutput):
    """The chosen candidate.

    Attributes:
        sequences: int64 [1, L], all parts with the gaps filled.
        gaps: The tokens of each gap, a list of int64 [n].
        scores: Mean log-probability of the generated tokens of every candidate [N].
        lengths: The lengths of the gaps of every candidate.
        best: Which candidate was chosen.
    """

    sequences: Tensor | None = None
    gaps: Any = None
    scores: Tensor | None = None
    lengths: list[tuple[int, ...]] | None = None
    best: int | None = None


def infill(model: Any, parts: list[list[int]], lengths: list[int], **settings: Any) -> Infilling:
    """Fill the gaps between ``parts``, trying every length for each, in one batch.

    Candidates are compared by the mean log-probability of their generated tokens, each when it was committed: a score
    that is normalised by length. No oracle is used; results with known lengths are no comparison.

    Args:
        model: Has ``diffusion_generate``.
        parts: Token ids before, between and behind the gaps; the last may be empty.
        lengths: Lengths to try; with several gaps all combinations are.
        **settings: Of ``diffusion_generate``.

    Raises:
        ValueError: If there is no gap or no length, before the first network evaluation.
    """
    if len(parts) < 2:
        raise ValueError(
            f"parts has {len(parts)} entries; give the tokens before and behind each gap, at least two lists"
        )
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths is {lengths}; give the lengths to try, each at least 1")
    tried = list(product(lengths, repeat=len(parts) - 1))
    config = model.config
    mask_id = config.mask_token_id if settings.get("mask_token_id") is None else settings["mask_token_id"]
    rows = [_filled(parts, [[mask_id] * length for length in gaps]) for gaps in tried]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [mask_id] * (longest - len(row)) for row in rows], device=model.device)
    valid = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
    fixed = {"max_new_tokens": 0, "return_dict_in_generate": True, "eos_token_id": None}
    output = model.diffusion_generate(ids, valid, **{**settings, **fixed})
    copies = len(output.sequences) // len(tried)  # num_return_sequences: the best of so many
    tried = [gaps for gaps in tried for _ in range(copies)]
    scores = output.log_probs.sum(dim=1) / torch.tensor([sum(gaps) for gaps in tried], device=ids.device)
    best = int(scores.argmax())
    sequence = output.sequences[best, : len(rows[best // copies])]
    return Infilling(sequence[None], _gaps(sequence, parts, tried[best]), scores, tried, best)


def _filled(parts: list[list[int]], gaps: list[list[int]]) -> list[int]:
    row = list(parts[0])
    for gap, part in zip(gaps, parts[1:], strict=True):
        row += [*gap, *part]
    return row


def _gaps(row: Tensor, parts: list[list[int]], lengths: tuple[int, ...]) -> list[Tensor]:
    sizes = [size for part, length in zip(parts, lengths, strict=False) for size in (len(part), length)]
    return list(row.split([*sizes, len(parts[-1])])[1::2])


__all__ = ["Infilling", "infill"]
