"""Ways to compute the training loss of a batch of token ids: the project's, plain ones, and those of peers at hand."""

from collections.abc import Callable
from functools import partial
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
Summed = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden [N, H], head [V, H], target [N]: the summed losses
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


def _row_by_row(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor, summed: Summed) -> Tensor:
    """For functions without per-token weights: one call per row, in the dtype of autocast, which they do not heed."""
    hidden, target, weight = _masked_rows(model, batch, t)
    head, kind = model.lm_head.weight, hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden, head = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (hidden, head))
    total = torch.zeros((), device=hidden.device)
    for value in weight.unique():
        row = weight == value
        total = total + value * summed(hidden[row], head, target[row])
    return total / batch.maskable.sum()


def torch_linear_cross_entropy(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor) -> Tensor:
    """torch's own chunked loss (torch 2.13)."""
    chunk = 256 if batch.masked.device.type == "cpu" else 2048
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
    return _row_by_row(model, batch, t, partial(F.linear_cross_entropy, reduction="sum", options=options))


def liger(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor) -> Tensor:
    """Liger's fused loss, of GPUs alone (``pip install liger-kernel``), with the head's gradient summed in float32."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
    return _row_by_row(model, batch, t, lambda hidden, head, target: loss(head, hidden, target))


def ours(chunk_size: int | None = None, document: int | None = None, compile_loss: bool = False) -> Score:
    """This project's objective; with ``document``, attention stays inside of documents of that many tokens."""
    objective = DiffusionObjective(chunk_size=chunk_size, compile_loss=compile_loss)

    def score(model: CoDALanguageModel, batch: MaskedBatch, t: Tensor) -> Tensor:
        ids, segments = batch.noisy_input_ids, None
        if document is not None:
            segments = (torch.arange(ids.shape[1], device=ids.device) // document).expand_as(ids)
        chosen = objective.select(batch.masked)
        hidden = model(ids, segment_ids=segments, output_logits=False).last_hidden_state
        output = objective(hidden, model.lm_head.weight, batch.target_ids, batch.masked, batch.maskable, t, chosen)
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
