"""The bidirectional Qwen3 language model: the one copy that training, sampling and export share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import ModelOutput, logging

from .configuration_coda import CoDAConfig
from .generation_coda import CoDAGenerationConfig, CoDAGenerationMixin

logger = logging.get_logger(__name__)

# Attention functions that take numbers, int [B, L], in place of a mask: a token looks at those that have its own.
BY_SEGMENT = {"xla_pallas"}

# (batch index, head index, query index, key index) -> may the query look at the key
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass
class CoDAOutput(ModelOutput):
    """Attributes: ``logits`` [B, L, V] unless they were not asked for, ``last_hidden_state`` [B, L, H], the cache."""

    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None


class CoDALanguageModel(CoDAGenerationMixin, Qwen3ForCausalLM):
    """Qwen3 with attention to both sides (arXiv 2510.03270, section 3).

    The layers are transformers' own; only the attention mask differs. State-dict keys are Qwen3's. Under
    ``config.shift`` the logits at position i - 1 predict token i.
    """

    config_class = CoDAConfig
    generation_config_class = CoDAGenerationConfig

    def __init__(self, config: CoDAConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.is_causal = False
        # Padding is read by attention (S2) and separates documents, so its embedding learns like any other.
        self.model.embed_tokens.padding_idx = None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        output_logits: bool = True,
        visible: MaskFunction | None = None,
        **kwargs: Any,
    ) -> CoDAOutput:
        """Run the backbone, attending to both sides.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], nonzero where a token may be looked at; None hides nothing (and is faster).
            position_ids: int64 [B, L]; None counts from 0, and anew in every segment.
            segment_ids: int64 [B, L], one number per document of a packed row; attention stays inside a document.
            past_key_values: Keys and values of tokens before these.
            inputs_embeds: [B, L, H], instead of ``input_ids``.
            use_cache: Return keys and values.
            output_logits: False leaves out the [B, L, V] logits; callers that need few rows apply ``lm_head`` to those.
            visible: A further restriction of attention, for attention-mask annealing.

        Returns:
            Logits (unshifted), final hidden states and, if asked for, the cache.
        """
        embeds = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if segment_ids is not None and position_ids is None:
            position_ids = restarted_positions(segment_ids)
        mask = self._mask(embeds, attention_mask, past_key_values, segment_ids, visible)
        outputs = self.model(
            inputs_embeds=embeds,
            attention_mask=dict.fromkeys(self.config.layer_types, mask),
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        logits = self.lm_head(hidden) if output_logits else None
        return CoDAOutput(logits=logits, last_hidden_state=hidden, past_key_values=outputs.past_key_values)

    def _mask(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        segment_ids: Tensor | None,
        visible: MaskFunction | None,
    ) -> Any:
        """What the attention function takes as its mask."""
        if self.config._attn_implementation in BY_SEGMENT and past_key_values is None and visible is None:
            return segment_numbers(segment_ids, attention_mask)
        return create_bidirectional_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            and_mask_function=self._restriction(segment_ids, visible),
        )

    def _restriction(self, segment_ids: Tensor | None, visible: MaskFunction | None) -> MaskFunction | None:
        if segment_ids is None and visible is None:
            return None
        if "flash_attention" in (self.config._attn_implementation or ""):
            raise ValueError(
                f"attn_implementation is {self.config._attn_implementation}, which has no custom masks, but document "
                "segments or attention annealing need one; use flex_attention or sdpa"
            )

        def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            inside = q.new_ones((), dtype=torch.bool) if segment_ids is None else segment_ids[b, q] == segment_ids[b, k]
            return inside if visible is None else inside & visible(b, h, q, k)

        return allowed

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a CoDA or a plain Qwen3 checkpoint; arguments as in transformers.

        A file that holds an output head of its own keeps it, whatever its config says about tying: the released CoDA
        weights are untied under ``tie_word_embeddings: true``.

        Raises:
            ValueError: If the checkpoint lacks weights of this architecture, has others, or has them in other sizes.
        """
        with_info = kwargs.pop("output_loading_info", False)
        options = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # told below, and better
        model, info = super().from_pretrained(*args, **kwargs, **options)
        for kind, what in (
            ("missing_keys", "lacks"),
            ("unexpected_keys", "has unknown"),
            ("mismatched_keys", "resizes"),
        ):
            if info[kind]:
                names = sorted(key if isinstance(key, str) else key[0] for key in info[kind])
                raise ValueError(
                    f"{args[0]} is no Qwen3 or CoDA checkpoint: it {what} {len(names)} weights, e.g. "
                    f"{', '.join(names[:3])}"
                )
        if model.lm_head.weight is not model.model.embed_tokens.weight:
            untie(model)
        settings = model.generation_config.to_dict()  # transformers reads them into its own class
        if settings.get("do_sample") is None:
            model.generation_config = CoDAGenerationConfig.from_dict(settings)
        else:  # sampling settings of an autoregressive parent mean something else here
            model.generation_config = CoDAGenerationConfig.from_model_config(model.config)
        return (model, info) if with_info else model


def untie(model: CoDALanguageModel) -> None:
    """Give the output head its own weights, in the model, its config and what saving believes of it."""
    if model.lm_head.weight is model.model.embed_tokens.weight:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys.pop("lm_head.weight", None)


def segment_numbers(segment_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
    """One number per token, [B, L], for those that look at each other; tokens nobody may look at are a segment of theirs."""
    if attention_mask is None:
        return segment_ids
    numbers = torch.zeros_like(attention_mask, dtype=torch.long) if segment_ids is None else segment_ids
    # 0 is taken by the hidden ones, whatever number a document has.
    return torch.where(attention_mask.bool(), numbers - numbers.amin(dim=1, keepdim=True) + 1, 0)


def restarted_positions(segment_ids: Tensor) -> Tensor:
    """Positions that count from 0 in every segment; int64 [B, L] for ``segment_ids`` [B, L]."""
    positions = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    first = torch.ones_like(segment_ids, dtype=torch.bool)
    first[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    start = torch.where(first, positions, 0)
    # The largest so far, by doubling steps: `cummax` crashes XLA (torch_xla 2.9) on rows of more than 128 tokens.
    step = 1
    while step < start.shape[1]:
        start = torch.maximum(start, nn.functional.pad(start[:, :-step], (step, 0)))
        step *= 2
    return positions - start


# The class name that an exported checkpoint's config points to as its remote code.
CoDAConfig.register_for_auto_class()
CoDALanguageModel.register_for_auto_class("AutoModel")

__all__ = ["CoDALanguageModel", "CoDAOutput"]
