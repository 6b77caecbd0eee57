"""The two layouts of an exported folder: ours, and that of the released CoDA models, which their own code reads."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from coda.model import CoDAConfig, CoDALanguageModel
from coda.model.modeling_coda import untie

LAYOUTS = ("coda", "released")
CODE = {
    "AutoConfig": "configuration_coda.CoDAConfig",
    "AutoModel": "modeling_coda.CoDALanguageModel",
    "AutoModelForMaskedLM": "modeling_coda.CoDALanguageModel",
}
# What the released model_config.py and generation_utils.py read. Fields of training alone keep their defaults there.
RELEASED_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "max_window_layers", "hidden_act", "rms_norm_eps"),
    *("attention_bias", "attention_dropout", "initializer_range", "use_cache", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id"),
)
RELEASED_GENERATION = (
    *("max_length", "max_new_tokens", "steps", "eps", "alg", "alg_temp", "temperature", "top_p", "top_k"),
    *("mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id"),
)


def write_files(
    model: CoDALanguageModel, tokenizer: PreTrainedTokenizerBase, folder: Path, layout: str, max_shard_size: str
) -> None:
    """Write weights, configs, tokenizer and the model's source files to ``folder`` in ``layout``.

    Both load here and, through the source files, anywhere. In the released layout the output head is always a weight of
    its own, the rotary base is a field of its own, and the tokenizer is one that transformers 4 knows.

    Raises:
        ValueError: If the released code could not compute this model.
    """
    if layout == "released":
        check_released(model.config)
        if model.config.tie_word_embeddings:
            model = deepcopy(model)
            untie(model)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    _change(folder / "config.json", _released_config if layout == "released" else dict, auto_map=CODE)
    if layout == "released":
        _change(folder / "generation_config.json", lambda values: _given(values, RELEASED_GENERATION))
        _change(folder / "tokenizer_config.json", _released_tokenizer, chat_template=tokenizer.chat_template)


def check_released(config: CoDAConfig) -> None:
    """Raise ValueError if the released code could not compute a model with ``config``."""
    rope, width = config.rope_parameters["rope_type"], config.num_attention_heads * config.head_dim
    for wrong, what in (
        (not config.shift, "shift false, but the released code predicts the next token"),
        (rope != "default", f"rotary scaling {rope}, which the released code does not have"),
        (
            width != config.hidden_size,
            f"heads of {width} together, which the released code cuts to {config.hidden_size}",
        ),
    ):
        if wrong:
            raise ValueError(f"--layout released does not fit this model, which has {what}; take --layout coda")


def _released_config(config: dict[str, Any]) -> dict[str, Any]:
    return _given(config, (*RELEASED_FIELDS, "model_type", "architectures", "transformers_version")) | {
        "attention_kernel": "flash_attention",
        "rope_scaling": None,
        "rope_theta": config["rope_parameters"]["rope_theta"],
        "sliding_window": None,
        "torch_dtype": config["dtype"],
        "use_sliding_window": False,
    }


def _released_tokenizer(settings: dict[str, Any]) -> dict[str, Any]:
    """Under the names of transformers 4."""
    extra = settings.pop("extra_special_tokens", [])
    return settings | {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": extra}


def _given(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if values.get(name) is not None}


def _change(path: Path, change: Any, **values: Any) -> None:
    """Put what ``change`` makes of the JSON in ``path``, and ``values``, in its place."""
    changed = change(json.loads(path.read_text(encoding="utf-8"))) | values
    path.write_text(json.dumps(changed, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
