"""From hidden states to what a denoising step knows: a token for every masked position, and how sure the model is of it."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from .sampling_coda import sample_token, weights

LOGITS_CHUNK = 1024  # positions whose logits are held at once
CPU_PIECE = 16  # positions that all passes over the vocabulary see in turn, so that a CPU's cache holds their logits


@dataclass
class Prediction:
    """What is predicted for M positions, from the model's own distribution: before temperature and truncation.

    Attributes:
        tokens: Drawn tokens, int64 [M].
        log_probs: Of the drawn tokens [M].
        margin: Probability of the best token above the second best [M], if asked for.
        entropy: In nats [M], if asked for.
        logits: [M, V], if asked for.
    """

    tokens: Tensor
    log_probs: Tensor
    margin: Tensor | None = None
    entropy: Tensor | None = None
    logits: Tensor | None = None


# Confidence [M] that decides which masked tokens are committed first.
CONFIDENCE: dict[str, Callable[[Prediction], Tensor]] = {
    "origin": lambda prediction: torch.zeros_like(prediction.log_probs),
    "maskgit_plus": lambda prediction: prediction.log_probs,
    "topk_margin": lambda prediction: prediction.margin,  # type: ignore[dict-item, return-value]
    "entropy": lambda prediction: -prediction.entropy,  # type: ignore[operator]
}
MEASURES = {"topk_margin": frozenset({"margin"}), "entropy": frozenset({"entropy"})}  # what each of them needs


@dataclass
class Predictor:
    """Applies the output head and reads each chunk of logits once.

    Args:
        lm_head: [M, H] to logits [M, V].
        mask_id: The absorbing state, which is never predicted.
        temperature: See :func:`sample_token`.
        top_p: See :func:`sample_token`.
        top_k: See :func:`sample_token`.
        wanted: Names of the optional fields of :class:`Prediction` to compute.
        processors: transformers' logits processors, called with the row's canvas as ``input_ids``.
    """

    lm_head: Callable[[Tensor], Tensor]
    mask_id: int
    temperature: float
    top_p: float | None
    top_k: int | None
    wanted: frozenset[str] = frozenset()
    processors: LogitsProcessorList | None = None

    def __call__(self, hidden: Tensor, noise: Tensor, index: Tensor, canvas: Tensor) -> Prediction:
        """Predict the tokens at flat positions ``index`` [M] of ``canvas`` [b, L].

        Tokens that are there already stay: the prediction then says how probable they are.

        Args:
            hidden: The states that predict them [M, H].
            noise: Uniform in [0, 1) [M].
            index: int64 [M].
            canvas: int64 [b, L].
        """
        parts, given = [], canvas.flatten()[index]
        chunks = (x.split(LOGITS_CHUNK) for x in (hidden, noise, given, index // canvas.shape[1]))
        for states, uniform, present, row in zip(*chunks, strict=True):
            logits = self.lm_head(states)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if self.processors:
                logits = self.processors(canvas[row], logits)
            logits[:, self.mask_id] = -torch.inf
            size = CPU_PIECE if logits.device.type == "cpu" else LOGITS_CHUNK
            pieces = (x.split(size) for x in (logits, uniform, present))
            parts += [self._read(*piece) for piece in zip(*pieces, strict=True)]
        return _concatenated(parts)

    def draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Draw tokens [M] from ``logits`` [M, V] with the settings of this decoding."""
        return sample_token(logits, noise, self.temperature, self.top_p, self.top_k)

    def _read(self, logits: Tensor, noise: Tensor, present: Tensor) -> Prediction:
        tokens = torch.where(present == self.mask_id, self.draw(logits, noise), present)
        kept = logits.clone() if "logits" in self.wanted else None
        centred = logits.sub_(logits.amax(dim=-1, keepdim=True))
        drawn = centred.gather(1, tokens[:, None]).squeeze(1)
        weight = weights(centred)
        total = weight.sum(dim=-1)
        margin = entropy = None
        if "margin" in self.wanted:
            margin = -weight.topk(2).values.diff(dim=-1).squeeze(1) / total
        if "entropy" in self.wanted:
            entropy = total.log() - weight.mul_(centred).sum(dim=-1) / total
        return Prediction(tokens, drawn - total.log(), margin, entropy, kept)


def _concatenated(parts: list[Prediction]) -> Prediction:
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Prediction)}
    joined: dict[str, Any] = {name: None if v[0] is None else torch.cat(v) for name, v in columns.items()}
    return Prediction(**joined)


__all__ = ["CONFIDENCE", "MEASURES", "Prediction", "Predictor"]
