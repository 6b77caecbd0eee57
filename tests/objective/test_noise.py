"""Noise levels: uniform in [eps, 1], alone or one in each stratum of the global batch. Bounds are 5 sigma."""

import pytest
import torch
from torch import Tensor

from coda.model.sampling_coda import row_noise
from coda.objective import LowDiscrepancyTime, TimeSampler, UniformTime

SAMPLERS = [UniformTime, LowDiscrepancyTime]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def quantiles(t: Tensor, eps: float = 1e-3) -> Tensor:
    """Back from times in [eps, 1] to the unit interval."""
    return (t.double() - eps) / (1 - eps)


def times(sampler: TimeSampler, index: Tensor, batch_size: int, rotation: int = 0, seed: int = 0) -> Tensor:
    """As the module draws them: noise from the number of the row."""
    return sampler.sample(index, batch_size, row_noise(index + (seed << 40), 0, 1)[:, 0], rotation)


def assert_uniform(values: Tensor, bins: int = 10) -> None:
    """Each of ``bins`` equal parts of [0, 1] holds its share, within 5 sigma of a binomial (stratified: of less)."""
    counts = values.histc(bins, 0.0, 1.0)
    bound = 5 * (len(values) / bins * (1 - 1 / bins)) ** 0.5
    assert counts.sum() == len(values)
    assert ((counts - len(values) / bins).abs() <= bound).all(), counts.tolist()


@pytest.mark.parametrize("total", [1, 2, 8, 24, 100, 512])
@pytest.mark.parametrize("first", [0, 1, 7 * 512, 10**12 + 13])
@pytest.mark.parametrize("rotation", [0, 5, -3, 2**62 + 1, -(2**62), 2**63 - 1, -(2**63)])
def test_low_discrepancy_puts_one_time_in_each_stratum_of_the_global_batch(
    total: int, first: int, rotation: int
) -> None:
    """Of any consecutive rows, wherever they begin and however large the hash is that rotates them."""
    t = times(LowDiscrepancyTime(), torch.arange(first, first + total), total, rotation)
    # At a stratum's edge float32 may round into the neighbour: the middle of each must be met.
    strata = (quantiles(t) * total).floor().long()
    assert strata.sort().values.tolist() == list(range(total))


@pytest.mark.parametrize("micro_batch", [4, 8])
def test_low_discrepancy_gives_every_micro_batch_all_noise_levels(micro_batch: int) -> None:
    """Each row of a micro-batch of 8 out of 32 lies in another eighth of the interval, or the one next to it."""
    t = quantiles(times(LowDiscrepancyTime(), torch.arange(32), 32)).view(-1, micro_batch)
    gaps = torch.cat([t.sort(dim=1).values.diff(dim=1), t.min(dim=1, keepdim=True).values], dim=1)
    assert gaps.max() < 2.1 / micro_batch


@every_sampler
def test_a_time_depends_on_its_own_row_alone(sampler: type[TimeSampler]) -> None:
    index = torch.arange(64)
    whole = times(sampler(), index, 64, rotation=9)
    for order in (torch.randperm(64, generator=torch.Generator().manual_seed(0)), index[10:13], index[5:6]):
        assert torch.equal(times(sampler(), index[order], 64, rotation=9), whole[order])


@every_sampler
def test_times_of_all_rows_are_uniform(sampler: type[TimeSampler]) -> None:
    assert_uniform(quantiles(times(sampler(), torch.arange(24_000), 12)))


def test_low_discrepancy_is_uniform_inside_a_stratum() -> None:
    assert_uniform((quantiles(times(LowDiscrepancyTime(), torch.arange(20_000), 4)) * 4).frac())


@every_sampler
def test_times_of_a_fixed_place_are_uniform_over_the_steps(sampler: type[TimeSampler]) -> None:
    """Variational Diffusion Models, appendix I.1: each time alone is uniform; else row 0 never sees much noise."""
    rows = [torch.arange(6 * step, 6 * step + 6) for step in range(3_000)]
    t = torch.stack([times(sampler(), index, 6, rotation=hash((0, step)))[2] for step, index in enumerate(rows)])
    assert_uniform(quantiles(t))


def test_independent_times_are_not_stratified() -> None:
    t = times(UniformTime(), torch.arange(1_000), 1_000)
    assert len((quantiles(t) * 1_000).floor().unique()) < 800


@every_sampler
@pytest.mark.parametrize("eps", [1e-6, 1e-3, 0.1, 0.9])
def test_times_lie_between_eps_and_one(sampler: type[TimeSampler], eps: float) -> None:
    t = times(sampler(eps), torch.arange(100_000), 100_000)
    assert t.dtype == torch.float32 and t.shape == (100_000,)
    assert torch.tensor(eps) <= t.min() < eps + 0.01 * (1 - eps)
    assert 0.99 < t.max() <= 1.0


@every_sampler
@pytest.mark.parametrize("noise", [0.0, 1.0 - 2.0**-24], ids=["smallest", "largest"])
def test_rounding_takes_no_time_out_of_range(sampler: type[TimeSampler], noise: float) -> None:
    """The extreme draws of float32 noise, for many eps: a t of 1 + 1e-7 is no probability."""
    for eps in torch.logspace(-6, -0.01, 500).tolist():
        t = sampler(eps).sample(torch.arange(21), 21, torch.full((21,), noise))
        assert torch.tensor(eps) <= t.min() and t.max() <= 1.0, eps


@every_sampler
def test_drawing_leaves_the_global_random_state(sampler: type[TimeSampler]) -> None:
    state = torch.get_rng_state()
    first, again, other = (times(sampler(), torch.arange(6), 6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@every_sampler
def test_the_rotation_may_be_a_tensor(sampler: type[TimeSampler]) -> None:
    """On XLA, where a number would be compiled in."""
    index = torch.arange(10)
    noise = row_noise(index, 0, 1)[:, 0]
    given = sampler().sample(index, 10, noise, torch.tensor(7))
    assert torch.equal(given, sampler().sample(index, 10, noise, 7))


@every_sampler
def test_times_are_drawn_on_the_device(sampler: type[TimeSampler]) -> None:
    index = torch.arange(4, device="meta")
    assert sampler().sample(index, 4, row_noise(index, 0, 1)[:, 0]).device.type == "meta"


@every_sampler
@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_an_eps_outside_0_to_1_is_refused_by_name(sampler: type[TimeSampler], bad: float) -> None:
    with pytest.raises(ValueError, match=rf"{sampler.__name__}\.eps is {bad}"):
        sampler(bad)
