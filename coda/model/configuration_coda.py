"""Configuration of the bidirectional Qwen3 backbone."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config


@strict
class CoDAConfig(Qwen3Config):
    """Qwen3's configuration plus what masked diffusion adds (arXiv 2510.03270).

    Reads the ``config.json`` of released CoDA checkpoints (``model_type`` CoDA) and of plain Qwen3 checkpoints. Defaults
    that differ from Qwen3's are those of the released CoDA model.

    Args:
        mask_token_id: Id of the absorbing state.
        shift: Whether the logits at position i - 1 predict token i, as in the autoregressive parent.
    """

    model_type = "CoDA"
    default_theta = 1_000_000.0

    mask_token_id: int = 151669
    shift: bool = True
    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 40960
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 151643
    pad_token_id: int | None = 151643
    eos_token_id: int | list[int] | None = 151645

    @classmethod
    def get_config_dict(cls, path: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read ``config.json``, taking Qwen3's for our own.

        Raises:
            ValueError: If it describes another architecture.
        """
        config, rest = super().get_config_dict(path, **kwargs)
        if config.get("model_type") not in (cls.model_type, Qwen3Config.model_type):
            raise ValueError(f"{path} holds a {config.get('model_type')!r} model; give a Qwen3 or a CoDA checkpoint")
        return config | {"model_type": cls.model_type}, rest


__all__ = ["CoDAConfig"]
