"""Tokens per second on a clock that the tests turn by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback

from callbacks import Throughput
from callbacks.throughput import paused
from tests.callbacks.events import scalars
from tests.conftest import Tiny

TOKENS = 4 * 32  # of a micro-batch


class Clock:
    """Stands still unless told to advance; ``readings`` counts who looks."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.readings = 0

    def perf_counter(self) -> float:
        self.readings += 1
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("callbacks.throughput.time", clock)
    return clock


class TakesTime(Callback):
    """Every micro-batch takes 2 seconds, every batch of validation 100, and what is paused 1000."""

    def __init__(self, clock: Clock, pausing: bool = False) -> None:
        self.clock = clock
        self.pausing = pausing

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.now += 2

    def on_validation_batch_end(self, *_: Any) -> None:
        self.clock.now += 100

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if self.pausing:
            with paused(trainer):
                self.clock.now += 1000


def rates(tiny: Tiny, *callbacks: Callback, **options: Any) -> dict[int, float]:
    return scalars(tiny.fit(*callbacks, **{"max_steps": 6, **options}))["throughput/tokens_per_sec"]


@pytest.mark.parametrize("every", [1, 2])
def test_it_is_tokens_over_time_since_the_last_logging_step(tiny: Tiny, clock: Clock, every: int) -> None:
    """The first logging step has nothing to compare with."""
    logged = rates(tiny, TakesTime(clock), Throughput(), limit_val_batches=0, log_every_n_steps=every)
    assert logged == dict.fromkeys(range(2 * every - 1, 6, every), TOKENS / 2)


def test_all_micro_batches_of_a_step_count(tiny: Tiny, clock: Clock) -> None:
    """Half the rows each, at 2 seconds each."""
    logged = rates(tiny, TakesTime(clock), Throughput(), limit_val_batches=0, accumulate_grad_batches=2)
    assert logged == dict.fromkeys(range(1, 6), TOKENS / 4)


def test_validation_does_not_count(tiny: Tiny, clock: Clock) -> None:
    logged = rates(tiny, TakesTime(clock), Throughput(), val_check_interval=2, num_sanity_val_steps=1)
    assert logged == pytest.approx(dict.fromkeys(range(1, 6), TOKENS / 2))


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
def test_what_is_paused_does_not_count(tiny: Tiny, clock: Clock, before: bool) -> None:
    """Whether the pause comes before the clock is read or after."""
    callbacks = [TakesTime(clock, pausing=True), Throughput()]
    logged = rates(tiny, *(callbacks if before else callbacks[::-1]), limit_val_batches=0)
    assert logged == pytest.approx(dict.fromkeys(range(1, 6), TOKENS / 2))


def test_the_clock_is_read_on_logging_steps_only(tiny: Tiny, clock: Clock) -> None:
    """Reading it means waiting for the device."""
    rates(tiny, Throughput(), TakesTime(clock), limit_val_batches=0, log_every_n_steps=3)
    assert clock.readings == 1 + 6 / 3


def alone(monkeypatch: pytest.MonkeyPatch, clock: Clock, **trainer: Any) -> dict[str, float]:
    """Two steps of 10 seconds, 2 rows of 8 tokens and 3e12 FLOPs each, on a GPU that can do 1e12 a second."""
    monkeypatch.setattr("callbacks.throughput._wait_for", lambda device: None)
    monkeypatch.setattr("callbacks.throughput.get_available_flops", lambda device, dtype: 1e12)
    logged: dict[str, float] = {}
    module: Any = SimpleNamespace(flops=lambda rows, length: 3e12, log=logged.__setitem__)
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    settings = {"strategy": strategy, "world_size": 1, "precision": "bf16-mixed", "is_last_batch": False}
    given: Any = SimpleNamespace(**settings, accumulate_grad_batches=1, log_every_n_steps=1, global_step=1)
    vars(given).update(trainer)
    throughput = Throughput()
    throughput.on_train_start(given, module)
    for step in range(3):
        clock.now += 10
        throughput.on_train_batch_end(given, module, None, {"input_ids": torch.zeros(2, 8)}, step)
    return logged


def test_tokens_of_all_ranks_count(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    one, four = (alone(monkeypatch, clock, world_size=ranks) for ranks in (1, 4))
    assert one["throughput/tokens_per_sec"] == pytest.approx(1.6)
    assert four["throughput/tokens_per_sec"] == pytest.approx(6.4)


@pytest.mark.parametrize("ranks", [1, 4])
def test_utilisation_is_that_of_one_device(monkeypatch: pytest.MonkeyPatch, clock: Clock, ranks: int) -> None:
    assert alone(monkeypatch, clock, world_size=ranks)["throughput/mfu"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-mixed", torch.bfloat16),
        ("bf16-true", torch.bfloat16),
        ("16-mixed", torch.float16),
        ("32-true", torch.float32),
    ],
)
def test_the_peak_is_that_of_the_precision(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, precision: str, dtype: torch.dtype
) -> None:
    alone(monkeypatch, clock)
    asked = []
    monkeypatch.setattr("callbacks.throughput.get_available_flops", lambda device, dtype: asked.append(dtype))
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cuda")), world_size=1, precision=precision
    )
    Throughput().on_train_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
    assert asked == [dtype]


def test_a_processor_has_no_utilisation(tiny: Tiny) -> None:
    assert "throughput/mfu" not in scalars(tiny.fit(Throughput(), max_steps=3, limit_val_batches=0))
