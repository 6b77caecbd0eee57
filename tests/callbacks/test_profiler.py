"""The step profile: every moment has one part, the parts are the right ones, and named parts make up the step."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks import DiffusionMonitor, GradientNorm, Throughput
from callbacks.profiler import PARTS, StepProfiler
from coda.masking import RandomMasking
from coda.model import ScratchBackbone
from coda.module import DiffusionModule
from tests.conftest import Tiny

STEPS, SKIP = 8, 2


class SlowMasking(RandomMasking):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.03)
        return super().__call__(*args, **kwargs)


class SlowOptimizer(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        time.sleep(0.05)
        return result


class Clock(Callback):
    """Measures the steps from outside; takes ``seconds`` a step, and more in validation, which is no part of one."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.begun: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.begun.append(time.perf_counter())

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(self.seconds)

    def on_validation_end(self, *_: Any) -> None:
        time.sleep(10 * self.seconds)


class SlowRows:
    """Rows that take 10 ms each."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.01)
        return self.rows[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)


def test_time_goes_to_the_part_that_took_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    profiler, clock, data = StepProfiler(skip=SKIP), Clock(0.07), tiny.data(global_batch_size=4)
    backbone = ScratchBackbone(32, 64, 1, 2, 1, 16, max_position_embeddings=128)
    module = DiffusionModule(backbone, SlowMasking(), lambda groups: SlowOptimizer(groups, lr=1e-3))
    rows = data.rows
    monkeypatch.setattr(data, "rows", lambda split: SlowRows(rows(split)) if split == "train" else rows(split))
    build, layers = module.configure_model, []

    def configure_model() -> None:
        build()
        if not layers:
            layers.append(module.backbone.model.norm.register_forward_hook(lambda *_: time.sleep(0.06)))

    monkeypatch.setattr(module, "configure_model", configure_model)
    options = {"max_steps": STEPS, "val_check_interval": 4, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    tiny.trainer(clock, profiler=profiler, logger=False, **options).fit(module, data)

    assert profiler.steps == STEPS - SKIP
    steps = profiler.steps
    for part, seconds in {"data": 0.04, "mask": 0.03, "body": 0.06, "optimizer": 0.05, "callbacks": 0.07}.items():
        assert seconds * steps <= profiler.seconds[part] < 2 * seconds * steps, (part, profiler.seconds)
    assert sum(profiler.shares().values()) == pytest.approx(1.0)


def test_named_parts_sum_to_the_step(tiny: Tiny) -> None:
    """Within 5%, of a model of the quickstart's size; and the sum is what a clock outside says."""
    profiler, clock = StepProfiler(skip=SKIP), Clock()
    backbone = ScratchBackbone(128, 384, 2, max_position_embeddings=128)
    module = DiffusionModule(backbone, RandomMasking(), lambda groups: torch.optim.AdamW(groups, lr=1e-3))
    callbacks = [clock, DiffusionMonitor(), GradientNorm(), Throughput()]
    options = {"max_steps": STEPS, "limit_val_batches": 0, "logger": TensorBoardLogger(tiny.folder)}
    tiny.trainer(*callbacks, profiler=profiler, **options).fit(module, tiny.data(64, 8, val_fraction=0.5))
    shares = profiler.shares()
    assert sum(shares[part] for part in PARTS) > 0.95
    outside = (clock.begun[-1] - clock.begun[SKIP]) / (STEPS - SKIP - 1)
    assert sum(profiler.seconds[part] for part in shares) / profiler.steps == pytest.approx(outside, rel=0.25)
    lines = profiler.summary().splitlines()
    assert lines[2].startswith("| data |")
    assert lines[-1].startswith("| a step |")


def test_a_step_that_is_one_program_cannot_be_divided() -> None:
    profiler = StepProfiler()
    profiler._lightning_module = SimpleNamespace(device=SimpleNamespace(type="xla"))
    profiler.start("run_training_epoch")
    with pytest.raises(ValueError, match="XLA runs a step as one program; set it to null"):
        profiler.start("[Strategy]XLASPMDStrategy.training_step")
