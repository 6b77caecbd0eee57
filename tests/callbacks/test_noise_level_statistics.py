"""The monitor's sums against a plain loop over rows, and that adding to them never waits for the device."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from callbacks import NoiseLevelStatistics
from callbacks.monitor import BUCKETS, STRATEGIES, summarise
from coda.objective import ObjectiveOutput

Update = tuple[ObjectiveOutput, Tensor, dict[str, Tensor]]
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}


def random_update(seed: int, rows: int = 64, names: tuple[str, ...] = STRATEGIES) -> Update:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.rand(rows, generator=generator)

    maskable = (draw() * 100).long() + 1
    masked = (draw() * maskable).long()
    correct = (draw() * masked).long().float()
    overflow = (draw() * masked / 2).long()
    output = ObjectiveOutput(draw().sum(), maskable.sum(), draw() * masked, correct, masked, maskable, overflow)
    return output, draw().clamp(min=1e-3), {name: draw() < 0.4 for name in names}


def plain_loop(updates: list[Update]) -> dict[str, float]:
    """The same means, row by row in Python."""
    sums: dict[tuple[str, str], float] = {}

    def add(group: str, **values: float) -> None:
        for name, value in values.items():
            sums[group, name] = sums.get((group, name), 0.0) + value

    for output, t, applied in updates:
        for i, time in enumerate(t.tolist()):
            level = min(int(time * BUCKETS), BUCKETS - 1) / BUCKETS
            named = [name for name in STRATEGIES if name in applied and applied[name][i]]
            for group in (f"t{level:.1f}-{level + 0.2:.1f}", "all", *(named or ["plain"])):
                add(group, nll=output.nll[i].item(), correct=output.correct[i].item(), masked=output.masked[i].item())
                add(group, maskable=output.maskable[i].item(), rows=1, requested=time * output.maskable[i].item())
                add(group, overflow=output.overflow[i].item())

    means = {}
    for group in {group for group, _ in sums}:
        kind = "noise" if group.startswith("t") else "strategy"
        if group != "all" and sums[group, "masked"]:
            means[f"{kind}/loss_{group}"] = sums[group, "nll"] / sums[group, "masked"]
            means[f"{kind}/accuracy_{group}"] = sums[group, "correct"] / sums[group, "masked"]
    for group in ("plain", *STRATEGIES):
        means[f"strategy/share_{group}"] = sums.get((group, "rows"), 0.0) / sums["all", "rows"]
    means["train/accuracy"] = sums["all", "correct"] / sums["all", "masked"]
    means["mask_rate/realised"] = sums["all", "masked"] / sums["all", "maskable"]
    means["mask_rate/overflow"] = sums["all", "overflow"] / sums["all", "masked"]
    means["mask_rate/requested"] = sums["all", "requested"] / sums["all", "maskable"]
    return means


def means_of(updates: list[Update]) -> dict[str, float]:
    statistics = NoiseLevelStatistics()
    for update in updates:
        statistics.update(*update)
    return summarise(statistics.compute())


@pytest.mark.parametrize("names", [STRATEGIES, ("S1", "S3"), ("S2",), ()], ids=["all", "two", "one", "none"])
def test_means_are_those_of_a_plain_loop(names: tuple[str, ...]) -> None:
    updates = [random_update(seed, names=names) for seed in range(4)]
    assert means_of(updates) == pytest.approx(plain_loop(updates), rel=1e-5)


def test_micro_batches_of_different_sizes_add_up() -> None:
    updates = [random_update(seed, rows) for seed, rows in enumerate([1, 7, 32, 2])]
    assert means_of(updates) == pytest.approx(plain_loop(updates), rel=1e-5)


def one_row(t: float, masked: int = 10, maskable: int = 20, **applied: bool) -> Update:
    count = torch.tensor([masked])
    others = (count, torch.tensor([maskable]), count // 10)
    output = ObjectiveOutput(count.sum(), count.sum(), count * 2.0, count / 2, *others)
    return output, torch.tensor([t]), {name: torch.tensor([flag]) for name, flag in applied.items()}


@pytest.mark.parametrize(
    ("t", "level"), [(0.001, "t0.0-0.2"), (0.2, "t0.2-0.4"), (0.59, "t0.4-0.6"), (0.99, "t0.8-1.0"), (1.0, "t0.8-1.0")]
)
def test_a_row_counts_at_its_noise_level_alone(t: float, level: str) -> None:
    noise = {name: value for name, value in means_of([one_row(t)]).items() if name.startswith("noise/")}
    assert noise == {f"noise/loss_{level}": 2.0, f"noise/accuracy_{level}": 0.5}


def test_a_row_with_two_strategies_counts_for_both() -> None:
    means = means_of([one_row(0.5, S1=True, S3=True), one_row(0.5, S1=False, S3=True), one_row(0.5)])
    shares = {name: means[f"strategy/share_{name}"] for name in ("plain", "S1", "S2", "S3")}
    assert shares == pytest.approx({"plain": 1 / 3, "S1": 1 / 3, "S2": 0.0, "S3": 2 / 3})


def test_what_no_row_contributed_to_is_left_out() -> None:
    means = means_of([one_row(0.5, S3=True)])
    assert not [name for name in means if "loss_S1" in name or "loss_plain" in name or "t0.0" in name]
    assert means["strategy/loss_S3"] == 2.0


def test_rows_without_a_masked_token_have_a_rate_but_no_loss() -> None:
    means = means_of([one_row(0.01, masked=0)])
    assert (means["mask_rate/realised"], means["mask_rate/requested"]) == (0.0, pytest.approx(0.01))
    assert not [name for name in means if "loss" in name or "accuracy" in name]


def test_no_update_at_all_has_no_means() -> None:
    assert summarise(torch.zeros_like(NoiseLevelStatistics().sums)) == {}


def test_resetting_starts_over() -> None:
    statistics = NoiseLevelStatistics()
    statistics.update(*random_update(0))
    statistics.compute()
    statistics.reset()
    statistics.update(*random_update(1))
    assert summarise(statistics.compute()) == means_of([random_update(1)])


def test_large_counts_do_not_saturate() -> None:
    """In float32, 2**24 + 1 is 2**24."""
    huge = one_row(0.5, masked=2**24 + 1, maskable=2**25 + 1)
    means = means_of([huge] * 3)
    assert means["mask_rate/realised"] == (2**24 + 1) / (2**25 + 1)


class NoWaiting(TorchDispatchMode):
    """Counts operations, and fails at any whose result the host needs."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.name().split(".")[0] not in WAITING, f"{func} waits for the device"
        self.operations += 1
        return func(*args, **(kwargs or {}))


def test_the_guard_notices_waiting() -> None:
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(1).item()


def test_an_update_never_waits_for_the_device() -> None:
    statistics, update = NoiseLevelStatistics(), random_update(0)
    with NoWaiting():
        statistics.update(*update)


def test_an_update_is_a_handful_of_operations() -> None:
    """Not some per strategy and noise level: on a GPU each costs a kernel launch in every step."""
    statistics, update = NoiseLevelStatistics(), random_update(0)
    with NoWaiting() as device:
        statistics.update(*update)
    assert 5 < device.operations < 60
