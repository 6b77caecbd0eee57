"""Ways to compute the training loss of a batch of token ids: the project's, plain ones, and those of peers at hand."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml  # type: ignore[import-untyped]
from torch import Tensor, nn

from benchmarks import peers
from coda.masking import MaskedBatch, RandomMasking
from coda.model import CoDAConfig, CoDALanguageModel
from coda.objective import DiffusionObjective

Loss = Callable[[Tensor], Tensor]  # of token ids [B, L]
Build = Callable[[CoDAConfig, torch.device], tuple[nn.Module, Loss]]
Score = Callable[[CoDALanguageModel, MaskedBatch, Tensor], Tensor]


def full_logits(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor) -> Tensor:
    """The plain implementation: logits of all positions in fp32, unmasked losses filled with zero."""
    logits = model(batch.noisy_input_ids).logits[:, :-1].float()
    nll = F.cross_entropy(logits.flatten(0, 1), batch.target_ids[:, 1:].flatten(), reduction="none").view(len(t), -1)
    return (nll.masked_fill(~batch.masked[:, 1:], 0) / t[:, None]).sum() / batch.maskable.sum()


def _masked_rows(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hidden = model(batch.noisy_input_ids, output_logits=False).last_hidden_state
    position = batch.masked.flatten().nonzero().squeeze(1)
    weight = (1 / t)[position // batch.masked.shape[1]]
    return hidden.flatten(0, 1)[position - 1], batch.target_ids.flatten()[position], weight


def masked_logits(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor) -> Tensor:
    """Logits of the masked positions only, all at once."""
    hidden, target, weight = _masked_rows(model, batch, t)
    nll = F.cross_entropy(model.lm_head(hidden).float(), target, reduction="none")
    return (nll * weight).sum() / batch.maskable.sum()


def torch_linear_cross_entropy(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor) -> Tensor:
    """torch's own chunked loss, one call per row because it has no per-token weights (torch 2.13)."""
    hidden, target, weight = _masked_rows(model, batch, t)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=256 if hidden.device.type == "cpu" else 2048)
    total = hidden.new_zeros(())
    for value in weight.unique():
        row = weight == value
        head = model.lm_head.weight
        total = total + value * F.linear_cross_entropy(hidden[row], head, target[row], reduction="sum", options=options)
    return total / batch.maskable.sum()


def ours(chunk_size: int | None = None, document: int | None = None) -> Score:
    """This project's objective; with ``document``, attention stays inside of documents of that many tokens."""
    objective = DiffusionObjective(chunk_size=chunk_size)

    def score(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor) -> Tensor:
        ids = batch.noisy_input_ids
        segments = (
            None if document is None else (torch.arange(ids.shape[1], device=ids.device) // document).expand_as(ids)
        )
        hidden = model(ids, segment_ids=segments, output_logits=False).last_hidden_state
        output = objective(hidden, model.lm_head.weight, batch.target_ids, batch.masked, batch.maskable, t)
        return output.loss_sum / output.denominator

    return score


def masked_by_us(score: Score) -> Build:
    """Our model and masks, and ``score`` for the loss; t is spread evenly, so that half of all tokens are masked."""

    def build(config: CoDAConfig, device: torch.device) -> tuple[nn.Module, Loss]:
        torch.manual_seed(0)
        with device:
            model = CoDALanguageModel(config).train()
        objective, masking = DiffusionObjective(), RandomMasking()

        def loss(ids: Tensor) -> Tensor:
            maskable = objective.predictable(torch.ones_like(ids, dtype=torch.bool))
            t = (torch.arange(len(ids), device=ids.device) + 0.5) / len(ids)
            batch = masking(ids, maskable, t, 0.0, mask_token_id=config.mask_token_id)
            return score(model, batch, t)

        return model, loss

    return build


def variants() -> dict[str, Build]:
    """What is compared, by name; the first one is the reference of ratios."""
    scores = {"full_logits": full_logits, "masked_logits": masked_logits, "ours": ours()}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        scores["torch_linear_cross_entropy"] = torch_linear_cross_entropy
    return {**{name: masked_by_us(score) for name, score in scores.items()}, **peers.available()}


def read_model(path: Path, vocabulary: int | None = None) -> CoDAConfig:
    """Read a section like those in ``configs/model``; ``vocabulary`` replaces its own."""
    sizes = {key: value for key, value in yaml.safe_load(path.read_text())["init_args"].items() if value is not None}
    if vocabulary is not None:
        sizes |= {"vocab_size": vocabulary, "mask_token_id": vocabulary - 1}
        sizes |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    return CoDAConfig(**sizes)
