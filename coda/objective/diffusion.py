"""The masked diffusion loss (arXiv 2510.03270, eq. 6) of a batch whose masks are already drawn."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from coda.objective.cross_entropy import masked_linear_cross_entropy
from coda.objective.noise import LowDiscrepancyTime, TimeSampler
from coda.objective.selection import CompactSelection, ExactSelection, FullSelection, Selection
from coda.objective.weights import InverseTime, LossWeight

Denominator = Literal["maskable", "tokens", "masked", "sequence"]


@dataclass
class ObjectiveOutput:
    """Sums over one micro-batch, so that batches of any size add up exactly. B rows; all but ``loss_sum`` are detached.

    Attributes:
        loss_sum: Scalar, the weighted sum of the masked tokens' losses in nats; differentiable.
        denominator: Scalar, what ``loss_sum`` is divided by once both are summed over the global batch.
        nll: [B], unweighted sum of the losses of each row's masked tokens, in nats.
        correct: [B], for how many of them no other token was more probable.
        masked: [B], how many there are.
        maskable: [B], how many there could have been.
        overflow: [B], how many masked tokens stood behind the capacity, and were computed in a further window.
    """

    loss_sum: Tensor
    denominator: Tensor
    nll: Tensor
    correct: Tensor
    masked: Tensor
    maskable: Tensor
    overflow: Tensor


class DiffusionObjective:
    """L = 1/D * sum over rows b and masked tokens n of w(t_b) * -log p(x_0^n | x_t).

    The default is the likelihood bound per token: w = 1/t and D = the number of maskable tokens.

    Args:
        time: How the noise levels t are drawn; None means ``LowDiscrepancyTime(eps=1e-3)``.
        weight: w(t); None means ``InverseTime()``.
        denominator: D: ``maskable`` tokens, all ``tokens`` (B*L, as the released code divides), ``masked`` tokens, or
            ``sequence``: each row is divided by its own maskable tokens, then rows are averaged.
        shift: Whether the logits at position i - 1 predict token i, as in the autoregressive parent.
        chunk_size: Rows of logits held at once; None chooses by device. With ``capacity``, and on XLA, of each group.
        capacity: Give the output head static shapes, with room for this share of the tokens of ``capacity_rows`` rows.
            Masked tokens beyond it are computed in further windows of the same size, as many as the fullest group needs:
            the loss stays exact, and on XLA no host waits to learn how many tokens are masked. None makes room for just
            those that are masked, and on XLA, where every other number of them would compile anew, for all tokens.
        capacity_rows: Rows that share their capacity, a divisor of the rows of a micro-batch (on a pod: of one chip's).
            One row masks anything from none to all of its tokens; 8 rows with stratified noise levels seldom exceed 0.6.
        compile_loss: Compile what happens to logits into one kernel, on a GPU. On a CPU it gains nothing.
    """

    def __init__(
        self,
        time: TimeSampler | None = None,
        weight: LossWeight | None = None,
        denominator: Denominator = "maskable",
        shift: bool = True,
        chunk_size: int | None = None,
        capacity: float | None = None,
        capacity_rows: int = 1,
        compile_loss: bool = False,
    ) -> None:
        if denominator not in get_args(Denominator):
            raise ValueError(f"denominator is {denominator!r}; choose one of {', '.join(get_args(Denominator))}")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; hold at least 1 row of logits, or null to choose by device")
        if capacity is not None and not 0.0 < capacity <= 1.0:
            raise ValueError(f"capacity is {capacity}; give a share of the tokens above 0 and up to 1, or null")
        if capacity_rows < 1:
            raise ValueError(f"capacity_rows is {capacity_rows}; at least 1 row has a capacity")
        self.time = time if time is not None else LowDiscrepancyTime()
        self.weight = weight if weight is not None else InverseTime()
        self.denominator = denominator
        self.shift = shift
        self.chunk_size = chunk_size
        self.capacity = capacity
        self.capacity_rows = capacity_rows
        self.compile_loss = compile_loss

    def predictable(self, maskable: Tensor, segment_ids: Tensor | None = None) -> Tensor:
        """Restrict ``maskable`` [B, L] to the tokens that some logits predict; call it before masking.

        Under ``shift`` nothing predicts a row's first token, and with ``segment_ids`` (int64 [B, L], one number per
        document of a packed row) no document's first token may be predicted from its neighbour.
        """
        if not self.shift:
            return maskable
        maskable = maskable.clone()
        maskable[:, 0] = False
        if segment_ids is not None:
            maskable[:, 1:] &= segment_ids[:, 1:] == segment_ids[:, :-1]
        return maskable

    def __call__(
        self,
        hidden: Tensor,
        head: Tensor,
        target_ids: Tensor,
        masked: Tensor,
        maskable: Tensor,
        t: Tensor,
        chosen: Selection | None = None,
    ) -> ObjectiveOutput:
        """Compute the loss sums of one micro-batch.

        Args:
            hidden: [B, L, H], final hidden states.
            head: [V, H], the output embedding.
            target_ids: int64 [B, L].
            masked: bool [B, L], the mask that was drawn, a part of ``maskable``. Under ``shift`` a row's first token is
                never scored.
            maskable: bool [B, L], what could have been drawn, after :meth:`predictable`.
            t: [B], noise levels.
            chosen: What :meth:`select` made of ``masked``, before ``hidden`` was computed; None makes it now.
        """
        masked = self.predictable(masked)
        chosen = self.select(masked) if chosen is None else chosen
        counts = maskable.sum(dim=1)
        row_weight = self.weight(t)
        if self.denominator == "sequence":
            row_weight = row_weight / counts.clamp(min=1)
        loss_sum, nll, correct = masked_linear_cross_entropy(
            chosen.states(hidden),
            head,
            chosen.tokens(self._before(target_ids)),
            chosen.weights(row_weight[:, None].expand(masked.shape)),
            self.chunk_size,
            chosen.capacity,
            chosen.needed,
            self.compile_loss,
        )
        return ObjectiveOutput(
            loss_sum=loss_sum,
            denominator=self._denominator(masked, counts).to(nll.dtype),
            nll=chosen.rows(nll),
            correct=chosen.rows(correct.to(nll.dtype)),
            masked=masked.sum(dim=1),
            maskable=counts,
            overflow=chosen.overflow,
        )

    def select(self, masked: Tensor) -> Selection:
        """Choose what reaches the output head, for ``masked`` bool [B, L].

        A GPU needs no pause for it if this is called before the body of the network (see :class:`ExactSelection`).

        Raises:
            ValueError: If ``capacity_rows`` does not divide the rows.
        """
        scored = self._before(masked)
        if self.capacity is None and masked.device.type != "xla":
            return ExactSelection(scored)
        if self.capacity is None or self.capacity == 1.0:
            return FullSelection(scored)
        if len(masked) % self.capacity_rows:
            raise ValueError(
                f"capacity_rows is {self.capacity_rows}, which does not divide the {len(masked)} rows of a micro-batch; "
                "choose a divisor"
            )
        return CompactSelection(scored, self.capacity_rows, self.capacity)

    def _before(self, values: Tensor) -> Tensor:
        """Number ``values`` [B, L] of the tokens by the positions that predict them; the last predicts none: zero."""
        return F.pad(values[:, 1:], (0, 1)) if self.shift else values

    def _denominator(self, masked: Tensor, counts: Tensor) -> Tensor:
        if self.denominator == "maskable":
            return counts.sum()
        if self.denominator == "masked":
            return masked.sum()
        if self.denominator == "sequence":
            return (counts > 0).sum()
        return torch.full((), masked.numel(), device=masked.device)
