"""Between logging steps a fit with its callbacks reads one number per step back from the device."""

from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from callbacks import DiffusionMonitor, DiffusionProgressBar, GradientNorm, Throughput
from coda.masking import ProgressiveMasking
from coda.objective.selection import HostNumber
from tests.conftest import Tiny

STEPS = 6
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "repeat_interleave"}


class Waits(TorchDispatchMode):
    """Notes the operations for which a host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masks = any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:]))
        if name in WAITS or (name.startswith("index") and masks):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class Watch(Callback):
    """Watches a fit once it has begun."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.waits = Waits()
            self.waits.__enter__()

    def on_train_end(self, *_: Any) -> None:
        self.waits.__exit__(None, None, None)


@pytest.mark.parametrize("every", [1000, 2])
def test_a_fit_reads_one_number_per_step(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """On logging steps it reads what is logged."""
    numbers: list[HostNumber] = []
    read = HostNumber.__int__
    monkeypatch.setattr(HostNumber, "__int__", lambda number: (numbers.append(number), read(number))[1])
    watch = Watch()
    callbacks = (DiffusionMonitor(), GradientNorm(), Throughput(), DiffusionProgressBar(), watch)
    options = {"max_steps": STEPS, "limit_val_batches": 0, "gradient_clip_val": 1.0, "log_every_n_steps": every}
    options |= {"logger": TensorBoardLogger(tiny.folder), "enable_progress_bar": True}
    module = tiny.module(
        masking=ProgressiveMasking(0.2, 0.2, 0.5, [2, 4]),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-3),
    )
    tiny.trainer(*callbacks, **options).fit(module, tiny.data())
    assert len(numbers) == STEPS
    if every > STEPS:
        assert watch.waits.names == ["_local_scalar_dense"] * STEPS
    else:
        assert len(watch.waits.names) > STEPS
