"""Loss weights w(t)."""

import pytest
import torch

from coda.objective import InverseTime, UniformWeight

T = torch.tensor([1e-3, 0.1, 0.25, 0.5, 1.0])


def test_inverse_time_is_one_over_t() -> None:
    torch.testing.assert_close(InverseTime()(T), torch.tensor([1000.0, 10.0, 4.0, 2.0, 1.0]))


def test_inverse_time_is_clipped_from_above_only() -> None:
    torch.testing.assert_close(InverseTime(max_weight=4.5)(T), torch.tensor([4.5, 4.5, 4.0, 2.0, 1.0]))


def test_uniform_weight_is_one() -> None:
    assert UniformWeight()(T).tolist() == [1.0] * len(T)


@pytest.mark.parametrize("weight", [InverseTime(), InverseTime(2.0), UniformWeight()])
def test_weights_keep_shape_type_and_input(weight: InverseTime | UniformWeight) -> None:
    t = T.double()
    assert weight(t).shape == t.shape and weight(t).dtype == torch.float64
    assert torch.equal(t, T.double())


def test_the_smallest_clip_counts_every_token_alike() -> None:
    assert InverseTime(max_weight=1.0)(T).tolist() == [1.0] * len(T)


@pytest.mark.parametrize("bad", [0.999, 0.0, -3.0])
def test_a_clip_below_one_is_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"InverseTime\.max_weight is {bad}"):
        InverseTime(bad)
