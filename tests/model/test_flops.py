"""The arithmetic of a training step, against the figures that were worked out by hand for Qwen3-1.7B."""

import pytest

from coda.model import CoDAConfig
from coda.model.flops import training_flops

LENGTH = 8192
QWEN3_1_7B = CoDAConfig()


def per_token(predicted: float, length: int = LENGTH, **changes: int) -> float:
    """GFLOP per token of a row of which the share ``predicted`` is predicted."""
    config = CoDAConfig(**changes) if changes else QWEN3_1_7B
    return training_flops(config, 3, length, predicted=3 * length * predicted) / (3 * length) / 1e9


def test_a_token_of_a_long_row_takes_16_gigaflop() -> None:
    assert per_token(predicted=1.0) == pytest.approx(15.96, abs=0.005)


def test_parts_are_body_attention_and_head() -> None:
    total = per_token(predicted=1.0)
    head = total - per_token(predicted=0.0)
    attention = 2 * (per_token(predicted=0.0) - per_token(predicted=0.0, length=LENGTH // 2))
    shares = [(total - attention - head) / total, attention / total, head / total]
    assert shares == pytest.approx([0.53, 0.35, 0.12], abs=0.005)


def test_predicting_the_masked_half_alone_saves_5_9_percent() -> None:
    assert 1 - per_token(predicted=0.5) / per_token(predicted=1.0) == pytest.approx(0.059, abs=0.001)


def test_the_body_is_six_times_its_weights() -> None:
    """28 layers: q and o of 2048 x 2048, k and v of 2048 x 1024, three MLP matrices of 2048 x 6144."""
    weights = 28 * (2 * 2048 * 2048 + 2 * 2048 * 1024 + 3 * 2048 * 6144)
    attention = 12 * 28 * 16 * 128  # forward and backward of q k^T and of its product with v, per key
    assert per_token(predicted=0.0, length=1) * 1e9 == pytest.approx(6 * weights + attention)


def test_without_grouped_keys_every_head_has_its_own() -> None:
    assert per_token(0.0, num_key_value_heads=None) == per_token(0.0, num_key_value_heads=16) > per_token(0.0)
