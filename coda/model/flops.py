"""Arithmetic of one training step, for model FLOPs utilisation."""

from coda.model.configuration_coda import CoDAConfig


def training_flops(config: CoDAConfig, rows: int, length: int, predicted: float) -> float:
    """FLOPs of forward and backward over ``rows`` rows of ``length`` tokens.

    Attention counts in full, because it looks both ways; the output head counts only the ``predicted`` tokens, because
    no other logits exist. Recomputed activations do not count (the usual definition of MFU).
    """
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    key_value = (config.num_key_value_heads or config.num_attention_heads) * config.head_dim
    matrices = width * (2 * heads + 2 * key_value) + 3 * width * config.intermediate_size
    per_token = config.num_hidden_layers * (6 * matrices + 12 * length * heads)
    return rows * length * float(per_token) + predicted * 6.0 * width * config.vocab_size
