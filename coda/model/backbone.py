"""Where the model to train comes from: a size from scratch, or the weights of a checkpoint."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from coda.model.configuration_coda import CoDAConfig
from coda.model.modeling_coda import CoDALanguageModel
from coda.model.performance import checkpoint_layers, compile_layers

Checkpointing = bool | Literal["selective"]
VOCABULARY_MULTIPLE = 64  # rows of a fresh embedding are rounded up to this: matrix units like round shapes


class Backbone(ABC):
    """Builds the model once its tokenizer is known.

    Args:
        attn_implementation: ``sdpa``, ``eager``, ``flex_attention`` or another one that transformers knows.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about 30% more work.
            ``selective`` keeps the results of matrix products and attention: in between, in memory and in work.
        compile_layers: Compile the decoder layer with torch.compile for training; the first step takes a minute longer.
    """

    def __init__(
        self,
        attn_implementation: str = "sdpa",
        gradient_checkpointing: Checkpointing = False,
        compile_layers: bool = False,
    ) -> None:
        self.attn_implementation = attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_layers = compile_layers

    def build(self, tokenizer: PreTrainedTokenizerBase, load_weights: bool = True) -> CoDALanguageModel:
        """Build the float32 model and fit it to ``tokenizer``, which must have a mask token.

        Args:
            tokenizer: The one that the data was tokenised with.
            load_weights: False builds the architecture alone, for a caller that brings the weights.

        Raises:
            ValueError: If the tokenizer has no mask token, or ids outside a vocabulary that cannot grow.
        """
        if tokenizer.mask_token_id is None:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path} has no mask token; add one with mask_token='<|mask|>'"
            )
        model = self.create(tokenizer, load_weights)
        fit_vocabulary(model, tokenizer)
        if self.gradient_checkpointing:
            checkpoint_layers(model, selective=self.gradient_checkpointing == "selective")
        if self.compile_layers:
            compile_layers(model)
        return model

    @property
    @abstractmethod
    def positions(self) -> int:
        """Longest row, in tokens."""

    @abstractmethod
    def create(self, tokenizer: PreTrainedTokenizerBase, load_weights: bool) -> CoDALanguageModel:
        """Build the model; :meth:`build` does the rest."""


class ScratchBackbone(Backbone):
    """A Qwen3 of any size with random weights. The defaults are the tiny model of the quickstart.

    Args:
        hidden_size: Width.
        intermediate_size: Width inside the SwiGLU MLP.
        num_hidden_layers: Layers.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads, a divisor of the query heads.
        head_dim: Width of a head; heads * head_dim need not equal the hidden size.
        max_position_embeddings: Longest row, in tokens.
        vocab_size: Rows of the embedding; None takes the tokenizer's size, rounded up to a multiple of 64.
        tie_word_embeddings: Share the embedding with the output head.
        rope_theta: Base of the rotary embedding.
        initializer_range: Standard deviation of the initial weights.
        attn_implementation: See :class:`Backbone`.
        gradient_checkpointing: See :class:`Backbone`.
        compile_layers: See :class:`Backbone`.
    """

    def __init__(
        self,
        hidden_size: int = 128,
        intermediate_size: int = 384,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        num_key_value_heads: int = 2,
        head_dim: int = 32,
        max_position_embeddings: int = 2048,
        vocab_size: int | None = None,
        tie_word_embeddings: bool = True,
        rope_theta: float = 1_000_000.0,
        initializer_range: float = 0.02,
        attn_implementation: str = "sdpa",
        gradient_checkpointing: Checkpointing = False,
        compile_layers: bool = False,
    ) -> None:
        super().__init__(attn_implementation, gradient_checkpointing, compile_layers)
        if num_attention_heads % num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads is {num_key_value_heads}, which does not divide num_attention_heads "
                f"{num_attention_heads}; choose a divisor"
            )
        self.settings: dict[str, Any] = {
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "num_key_value_heads": num_key_value_heads,
            "head_dim": head_dim,
            "max_position_embeddings": max_position_embeddings,
            "tie_word_embeddings": tie_word_embeddings,
            "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
            "initializer_range": initializer_range,
        }
        self.vocab_size = vocab_size

    @property
    def positions(self) -> int:
        """See :class:`Backbone`."""
        return int(self.settings["max_position_embeddings"])

    def create(self, tokenizer: PreTrainedTokenizerBase, load_weights: bool) -> CoDALanguageModel:
        """See :meth:`Backbone.create`."""
        size = self.vocab_size or _rounded(len(tokenizer))
        if len(tokenizer) > size:
            raise ValueError(
                f"vocab_size is {size}, but the tokenizer has {len(tokenizer)} tokens; raise it, or set null to fit"
            )
        special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
        config = CoDAConfig(vocab_size=size, mask_token_id=tokenizer.mask_token_id, **special, **self.settings)
        return CoDALanguageModel._from_config(config, attn_implementation=self.attn_implementation)


class PretrainedBackbone(Backbone):
    """The weights of a plain Qwen3 or a CoDA checkpoint, as float32 master weights.

    Args:
        path: A folder or a Hugging Face name, for example ``Qwen/Qwen3-1.7B`` or ``Salesforce/CoDA-v0-Base``.
        revision: Branch, tag or commit on the hub.
        attn_implementation: See :class:`Backbone`.
        gradient_checkpointing: See :class:`Backbone`.
        compile_layers: See :class:`Backbone`.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        attn_implementation: str = "sdpa",
        gradient_checkpointing: Checkpointing = False,
        compile_layers: bool = False,
    ) -> None:
        super().__init__(attn_implementation, gradient_checkpointing, compile_layers)
        self.path = path
        self.revision = revision

    @property
    def positions(self) -> int:
        """See :class:`Backbone`."""
        return self._config().max_position_embeddings

    def _config(self) -> CoDAConfig:
        try:
            return CoDAConfig.from_pretrained(self.path, revision=self.revision)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ValueError:
        return ValueError(
            f"model.backbone path is {self.path}, where no model can be loaded; give a checkpoint folder or a hub name "
            f"({error})"
        )

    def create(self, tokenizer: PreTrainedTokenizerBase, load_weights: bool) -> CoDALanguageModel:
        """See :meth:`Backbone.create`."""
        options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": self.attn_implementation}
        if not load_weights:
            return CoDALanguageModel._from_config(self._config(), **options)
        try:
            return CoDALanguageModel.from_pretrained(self.path, revision=self.revision, **options)
        except (OSError, SafetensorError) as error:
            raise self._unreadable(error) from error


def fit_vocabulary(model: CoDALanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell ``model`` the tokenizer's special tokens; grow its embedding only if some id has no row."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= model.config.vocab_size:
        model.resize_token_embeddings(_rounded(largest + 1))
    for config in (model.config, model.generation_config):
        config.mask_token_id = tokenizer.mask_token_id
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = tokenizer.eos_token_id


def _rounded(size: int) -> int:
    return -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
