"""Noise levels: uniform in [eps, 1], alone or one in each stratum of the global batch. Bounds are 5 sigma."""

import pytest
import torch
from torch import Tensor

from coda.objective import LowDiscrepancyTime, TimeSampler, UniformTime

SAMPLERS = [UniformTime, LowDiscrepancyTime]


def quantiles(t: Tensor, eps: float) -> Tensor:
    """Back from times in [eps, 1] to the unit interval."""
    return (t.double() - eps) / (1 - eps)


def global_batch(
    sampler: TimeSampler, rows: int, num_shards: int, generator: torch.Generator, rotation: int = 0
) -> list[Tensor]:
    """The times of all micro-batches of one optimizer step."""
    options = {"num_shards": num_shards, "rotation": rotation, "generator": generator}
    return [sampler.sample(rows, shard=s, **options) for s in range(num_shards)]


def assert_uniform(values: Tensor, bins: int = 10) -> None:
    """Each of ``bins`` equal parts of [0, 1] holds its share, within 5 sigma of a binomial (stratified: of less)."""
    counts = values.histc(bins, 0.0, 1.0)
    bound = 5 * (len(values) / bins * (1 - 1 / bins)) ** 0.5
    assert counts.sum() == len(values)
    assert ((counts - len(values) / bins).abs() <= bound).all(), counts.tolist()


@pytest.mark.parametrize(("rows", "num_shards"), [(1, 1), (8, 1), (1, 8), (4, 6), (16, 32)])
def test_low_discrepancy_puts_one_time_in_each_stratum_of_the_global_batch(rows: int, num_shards: int) -> None:
    total = rows * num_shards
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        t = torch.cat(global_batch(LowDiscrepancyTime(), rows, num_shards, generator, rotation=step))
        strata = (quantiles(t, 1e-3) * total).floor().long()
        assert strata.sort().values.tolist() == list(range(total))


def test_low_discrepancy_gives_every_shard_all_noise_levels() -> None:
    """Each of 8 rows of a shard lies in another eighth of the interval."""
    for t in global_batch(LowDiscrepancyTime(), 8, 4, torch.Generator().manual_seed(0)):
        assert (quantiles(t, 1e-3) * 8).floor().sort().values.tolist() == list(range(8))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_times_of_a_row_picked_at_random_are_uniform(sampler: type[TimeSampler]) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [torch.cat(global_batch(sampler(), 4, 3, generator)) for _ in range(2_000)]
    assert_uniform(quantiles(torch.cat(steps), 1e-3))


def test_low_discrepancy_is_uniform_inside_a_stratum() -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.stack([LowDiscrepancyTime().sample(4, generator=generator) for _ in range(5_000)])
    assert_uniform((quantiles(t, 1e-3) * 4).frac().flatten())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_times_of_a_fixed_row_are_uniform_over_the_steps(sampler: type[TimeSampler]) -> None:
    """Variational Diffusion Models, appendix I.1: each time alone is uniform; else row 0 never sees much noise."""
    generator = torch.Generator().manual_seed(0)
    steps = [global_batch(sampler(), 2, 3, generator, rotation=hash((0, step)))[1][0] for step in range(3_000)]
    assert_uniform(quantiles(torch.stack(steps), 1e-3))


def test_independent_times_are_not_stratified() -> None:
    t = UniformTime().sample(1_000, generator=torch.Generator().manual_seed(0))
    assert len((quantiles(t, 1e-3) * 1_000).floor().unique()) < 800


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("eps", [1e-6, 1e-3, 0.1, 0.9])
def test_times_lie_between_eps_and_one(sampler: type[TimeSampler], eps: float) -> None:
    t = sampler(eps).sample(100_000, generator=torch.Generator().manual_seed(0))
    assert t.dtype == torch.float32 and t.shape == (100_000,)
    assert torch.tensor(eps) <= t.min() < eps + 0.01 * (1 - eps)
    assert 0.99 < t.max() <= 1.0


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("noise", [0.0, 1.0 - 2.0**-24], ids=["smallest", "largest"])
def test_rounding_takes_no_time_out_of_range(
    sampler: type[TimeSampler], noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extreme draws of float32 noise, for many eps: a t of 1 + 1e-7 is no probability."""
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, noise))
    for eps in torch.logspace(-6, -0.01, 500).tolist():
        t = torch.stack([sampler(eps).sample(7, shard=s, num_shards=3) for s in range(3)])
        assert torch.tensor(eps) <= t.min() and t.max() <= 1.0, eps


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_seed_gives_the_same_times_and_leaves_the_global_state(sampler: type[TimeSampler]) -> None:
    state = torch.get_rng_state()
    first, again, other = (sampler().sample(6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_times_are_drawn_on_the_device(sampler: type[TimeSampler]) -> None:
    assert sampler().sample(4, device="meta").device.type == "meta"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_an_eps_outside_0_to_1_is_refused_by_name(sampler: type[TimeSampler], bad: float) -> None:
    with pytest.raises(ValueError, match=rf"{sampler.__name__}\.eps is {bad}"):
        sampler(bad)
