"""``diffusion_generate``: start from masks, evaluate the network, commit some tokens, until none is masked."""

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from .blocks_coda import Plan
from .cache_coda import CACHES, NoCache
from .canvas_coda import Canvas
from .decoding_coda import Components, Decoder
from .generation_config_coda import CoDAGenerationConfig
from .guide_coda import Guided
from .infilling_coda import Infilling, infill
from .prediction_coda import CONFIDENCE, MEASURES, Predictor
from .remasking_coda import ConfidenceDrop, ReMDM
from .selection_coda import RULES, Bernoulli, CommitRule, Scheduled
from .stopping_coda import Stopping
from .streaming_coda import Stream

XLA_MULTIPLE = 128  # lengths are rounded up to this where every new shape is compiled


@dataclass
class CoDAGenerationOutput(ModelOutput):
    """Result of decoding.

    Attributes:
        sequences: int64 [B, L], laid out as the input, new tokens behind it.
        history: If asked for, the canvas [B, L] after every denoising step.
        nfe: Network evaluations, each of the whole batch or of what is left of it.
        row_nfe: Network evaluations of each row, int64 [B].
        tokens_per_nfe: Generated tokens per network evaluation of each row, float [B].
        log_probs: Of each generated token when it was committed, before temperature [B, L]; 0 elsewhere.
        acceptance_rate: With a guide, the share of drafted tokens that it accepted.
        guide_nfe: With a guide, its evaluations.
    """

    sequences: Tensor | None = None
    history: tuple[Tensor, ...] | None = None
    nfe: int | None = None
    row_nfe: Tensor | None = None
    tokens_per_nfe: Tensor | None = None
    log_probs: Tensor | None = None
    acceptance_rate: float | None = None
    guide_nfe: int | None = None


class CoDAGenerationMixin:
    """Adds :meth:`diffusion_generate` to a model whose output has ``last_hidden_state`` and which has an ``lm_head``."""

    @torch.no_grad()
    def diffusion_generate(
        self: Any,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: CoDAGenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        **overrides: Any,
    ) -> Tensor | CoDAGenerationOutput:
        """Fill masked tokens: new ones behind the prompt, and those already in it (infilling).

        Args:
            inputs: int64 [B, L], prompts, padded left or right.
            attention_mask: [B, L], zero at padding; None means that there is none.
            generation_config: Settings; None takes the model's own.
            streamer: Receives the prompt and what becomes final through ``put``, drafts through ``put_draft``; see
                ``Stream``. ``RowStreamers`` takes more than one row.
            logits_processor: Called with the rows' canvases and the logits of the masked positions.
            stopping_criteria: Called with the committed tokens of a row, from the left.
            **overrides: Single settings, see :class:`CoDAGenerationConfig`. ``commit``, ``cache``, ``remasking`` and
                ``alg`` also take an object (``CommitRule``, ``BlockCache``, ``Remasking``, a function of ``Prediction``),
                ``guide`` an autoregressive model.

        Returns:
            int64 [B * num_return_sequences, L + max_new_tokens], or a :class:`CoDAGenerationOutput`.

        Raises:
            ValueError: For a setting or prompt that cannot be decoded, before the first network evaluation.
        """
        settings = (generation_config or self.generation_config).updated(overrides)
        decoder = _prepare(self, inputs, attention_mask, settings, logits_processor, stopping_criteria)
        generated = decoder.canvas.generated.sum(dim=1)
        history = _decode(decoder, streamer, settings.output_history)
        if not settings.return_dict_in_generate:
            return decoder.canvas.restore()[0]
        return _report(decoder, generated, history)

    def diffusion_decoder(
        self: Any,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: CoDAGenerationConfig | None = None,
        **overrides: Any,
    ) -> Decoder:
        """The decoding of :meth:`diffusion_generate` before its first step, for a caller that takes the steps itself.

        Arguments and errors are those of :meth:`diffusion_generate`. Steps are taken under ``torch.no_grad()``.
        """
        settings = (generation_config or self.generation_config).updated(overrides)
        return _prepare(self, inputs, attention_mask, settings, None, None)

    def diffusion_infill(self: Any, parts: list[list[int]], lengths: list[int], **settings: Any) -> Infilling:
        """Fill gaps of unknown length between ``parts``, see :func:`infill`."""
        return infill(self, parts, lengths, **settings)


def _prepare(
    model: Any,
    inputs: Tensor,
    attention_mask: Tensor | None,
    settings: CoDAGenerationConfig,
    processors: LogitsProcessorList | None,
    criteria: StoppingCriteriaList | None,
) -> Decoder:
    """Lay out the canvas and choose the components. Raises ValueError for what cannot be decoded."""
    multiple = settings.pad_to_multiple_of or (XLA_MULTIPLE if inputs.device.type == "xla" else None)
    copies = settings.num_return_sequences or 1
    inputs = inputs.repeat_interleave(copies, dim=0)
    attention_mask = None if attention_mask is None else attention_mask.repeat_interleave(copies, dim=0)
    mask_id = model.config.mask_token_id if settings.mask_token_id is None else settings.mask_token_id
    canvas = Canvas(inputs, attention_mask, settings.new_tokens(inputs.shape[1]), mask_id, multiple or 1)
    canvas.check(model.config, guided=settings.guide is not None)
    length = canvas.ids.shape[1]
    return Decoder(
        model=model,
        canvas=canvas,
        plan=Plan(_masked_columns(canvas), settings.block_length, settings.steps),
        parts=_components(model, settings, mask_id, multiple or 1, processors, criteria),
        seeds=_row_seeds(settings.seed, canvas.ids),
        pad_id=_padding(settings, mask_id),
        window=min(settings.block_length or length, length) if multiple else None,
    )


def _report(decoder: Decoder, generated: Tensor, history: list[Tensor]) -> CoDAGenerationOutput:
    """What ``return_dict_in_generate`` asks for; ``generated`` [B] counts the tokens of each row."""
    sequences, log_probs = decoder.canvas.restore()
    row_nfe = torch.tensor(decoder.row_nfe, device=sequences.device)
    guide = decoder.parts.rule if isinstance(decoder.parts.rule, Guided) else None
    return CoDAGenerationOutput(
        sequences=sequences,
        history=tuple(history) or None,
        nfe=decoder.steps,
        row_nfe=row_nfe,
        tokens_per_nfe=generated / row_nfe.clamp(min=1),
        log_probs=log_probs,
        acceptance_rate=guide.accepted / guide.drafted if guide else None,
        guide_nfe=guide.nfe if guide else None,
    )


def _components(
    model: Any,
    settings: CoDAGenerationConfig,
    mask_id: int,
    multiple: int,
    processors: LogitsProcessorList | None,
    criteria: StoppingCriteriaList | None,
) -> Components:
    """Make the components that ``settings`` name.

    Raises:
        ValueError: If the guide cannot read the model's tokens.
    """
    predictor = Predictor(
        model.lm_head, mask_id, settings.temperature or 0.0, settings.top_p, settings.top_k, processors=processors
    )
    # Objects of the caller's are copied: what they remember is of this decode.
    remasking, rate = copy(settings.remasking), settings.remasking_rate or 0.0
    if isinstance(remasking, str):
        remasking = {"remdm": ReMDM(rate, settings.eps), "confidence_drop": ConfidenceDrop(rate)}[remasking]
    rule = _rule(model, settings, predictor, remasking)
    predictor.wanted = rule.wanted | MEASURES.get(settings.alg, frozenset())
    cache = copy(settings.cache)
    if isinstance(cache, str):
        cache = CACHES[cache](settings.cache_refresh, multiple) if cache in CACHES else NoCache()
    ends = settings.eos_token_id
    return Components(
        predictor=predictor,
        confidence=CONFIDENCE[settings.alg] if isinstance(settings.alg, str) else settings.alg,
        alg_temp=settings.alg_temp,
        rule=rule,
        cache=cache,
        remasking=remasking,
        stopping=Stopping([] if ends is None else [ends] if isinstance(ends, int) else list(ends), criteria),
    )


def _rule(model: Any, settings: CoDAGenerationConfig, predictor: Predictor, remasking: Any) -> CommitRule:
    if settings.guide is not None:
        return Guided(_checked_guide(model, settings.guide), settings.guide_weight, predictor)
    if settings.commit is not None:
        return copy(settings.commit)
    for name, rule in RULES.items():
        if getattr(settings, name) is not None:
            return rule(getattr(settings, name))
    if settings.alg == "origin":
        return Bernoulli(settings.eps, remasking.probability if isinstance(remasking, ReMDM) else None)
    return Scheduled()


def _checked_guide(model: Any, guide: Any) -> Any:
    if isinstance(guide, str):
        if not model.config.shift:
            raise ValueError(
                "guide is self, but this model predicts tokens in place (shift is false), so that it never was "
                "autoregressive; give an autoregressive model"
            )
        guide = model
    if guide.config.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"guide has a vocabulary of {guide.config.vocab_size} tokens, the model of {model.config.vocab_size}; give a "
            "guide with the same tokenizer"
        )
    if "flash" in (getattr(guide.config, "_attn_implementation", None) or ""):
        raise ValueError(
            f"guide has attn_implementation {guide.config._attn_implementation}, which has no custom masks, but reading a "
            "draft with a cache needs one; load it with sdpa"
        )
    return guide


def _decode(decoder: Decoder, streamer: BaseStreamer | None, keeps_history: bool) -> list[Tensor]:
    """Take all steps; return the canvas after each, if asked for."""
    history: list[Tensor] = []
    stream = None if streamer is None else Stream(streamer, decoder.canvas.mask_id)
    if stream is not None:
        stream.final(decoder.canvas.restore()[0])
    while not decoder.finished:
        ended = decoder.step()
        if not keeps_history and stream is None:
            continue
        drafts = decoder.canvas.restore()[0]
        if keeps_history:
            history.append(drafts)
        if stream is not None:
            stream.draft(drafts)
            if ended:
                stream.final(drafts, decoder.finished)
    return history


def _masked_columns(canvas: Canvas) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in canvas.masked]
    for row, column in canvas.masked.nonzero().tolist():
        rows[row].append(column)
    return rows


def _padding(settings: CoDAGenerationConfig, mask_id: int) -> int:
    ends = settings.eos_token_id
    first = ends[0] if isinstance(ends, list | tuple) and ends else ends
    return next((int(token) for token in (settings.pad_token_id, first) if token is not None), mask_id)


def _row_seeds(seed: int | list[int] | None, ids: Tensor) -> Tensor:
    rows = ids.shape[0]
    if isinstance(seed, list | tuple) and len(seed) != rows:
        raise ValueError(f"seed lists {len(seed)} numbers for {rows} prompts; give one each, or a single int")
    if seed is None:
        seed = torch.randint(2**62, (rows,)).tolist()
    elif isinstance(seed, int):
        seed = [seed + row for row in range(rows)]
    return torch.tensor(seed, device=ids.device)


__all__ = ["CoDAGenerationConfig", "CoDAGenerationMixin", "CoDAGenerationOutput", "Infilling"]
