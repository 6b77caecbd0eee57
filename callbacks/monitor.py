"""What masking and objective do: losses by noise level and by strategy, realised against requested mask rates."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from callbacks.steps import is_logging_step
from coda.objective import ObjectiveOutput
from coda.steps import replicas

BUCKETS = 5
STRATEGIES = ("S1", "S2", "S3")
ALL, PLAIN = 0, 1  # groups of rows before those of the strategies
NLL, CORRECT, MASKED, MASKABLE, REQUESTED, OVERFLOW, ROWS = range(7)


class NoiseLevelStatistics(Metric):
    """Sums over rows, by noise level and by group: all rows, rows with no strategy, rows with S1, S2, S3.

    One einsum per update on the device; nothing is read back before :meth:`compute`.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        shape = (BUCKETS, PLAIN + 1 + len(STRATEGIES), ROWS + 1)
        self.add_state("sums", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, output: ObjectiveOutput, t: Tensor, applied: dict[str, Tensor]) -> None:
        """Add a micro-batch: its loss sums, noise levels [B] and the rows [B] each strategy was applied to."""
        levels = torch.arange(BUCKETS, device=t.device)
        bucket = (t * BUCKETS).long().clamp(max=BUCKETS - 1)[:, None] == levels
        none = torch.zeros_like(t, dtype=torch.bool)
        flags = [applied.get(name, none) for name in STRATEGIES]
        plain = ~torch.stack(flags).any(dim=0)
        groups = torch.stack([~none, plain, *flags], dim=1)
        requested = t * output.maskable
        counts = (output.masked, output.maskable, requested, output.overflow, torch.ones_like(t))
        stats = torch.stack([value.to(self.sums.dtype) for value in (output.nll, output.correct, *counts)], dim=1)
        self.sums += torch.einsum("bk,bg,bs->kgs", bucket.to(stats.dtype), groups.to(stats.dtype), stats)

    def compute(self) -> Tensor:
        """The sums, float64 [noise level, group, statistic]."""
        return self.sums


class DiffusionMonitor(Callback):
    """Logs, on logging steps, the mean over all steps since the last one.

    - ``noise/loss_t0.0-0.2`` ...: nats per masked token and ``noise/accuracy_...`` by noise level;
    - ``strategy/loss_S1`` ...: the same by masking strategy (``plain``: none);
    - ``strategy/share_S1`` ...: share of rows, and ``schedule/S1`` ...: the share that the schedule asks for;
    - ``mask_rate/realised`` and ``mask_rate/requested``: share of maskable tokens that are masked;
    - ``mask_rate/overflow``: share of the masked tokens for which the objective's capacity had no room, and which were
      computed in a further window; 0 without a capacity.
    """

    def __init__(self) -> None:
        self.statistics = NoiseLevelStatistics()
        self.progress = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the sums where the model is."""
        if pl_module.device.type in ("mps", "xla"):  # has no float64, or only a slow one
            self.statistics.set_dtype(torch.float32)
        self.statistics.to(pl_module.device)
        several = replicas(trainer) > 1  # else the sums are those of all ranks already
        self.statistics.sync_on_compute = self.statistics._to_sync = several

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the progress that the step is masked with: once it is done, the module's is the next step's."""
        self.progress = pl_module.progress  # type: ignore[assignment]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the step; log and start over on logging steps."""
        self.statistics.update(outputs["output"], outputs["t"], outputs["applied"])
        if is_logging_step(trainer, batch_idx):
            sums = self.statistics.compute().cpu()
            self.statistics.reset()
            schedules = pl_module.masking.schedules()  # type: ignore[union-attr, operator]
            values = {f"schedule/{name}": schedule(self.progress) for name, schedule in schedules.items()}
            pl_module.log_dict({**values, **summarise(sums)})


def summarise(sums: Tensor) -> dict[str, float]:
    """Turn the sums of :class:`NoiseLevelStatistics` into named means, leaving out what no row contributed to."""
    values: dict[str, float] = {}

    def add(name: str, numerator: Tensor, denominator: Tensor) -> None:
        if denominator > 0:
            values[name] = float(numerator / denominator)

    for k in range(BUCKETS):
        level = f"t{k / BUCKETS:.1f}-{(k + 1) / BUCKETS:.1f}"
        add(f"noise/loss_{level}", sums[k, ALL, NLL], sums[k, ALL, MASKED])
        add(f"noise/accuracy_{level}", sums[k, ALL, CORRECT], sums[k, ALL, MASKED])
    total = sums.sum(dim=0)
    for group, name in enumerate(("plain", *STRATEGIES), start=PLAIN):
        add(f"strategy/loss_{name}", total[group, NLL], total[group, MASKED])
        add(f"strategy/accuracy_{name}", total[group, CORRECT], total[group, MASKED])
        add(f"strategy/share_{name}", total[group, ROWS], total[ALL, ROWS])
    add("train/accuracy", total[ALL, CORRECT], total[ALL, MASKED])
    add("mask_rate/realised", total[ALL, MASKED], total[ALL, MASKABLE])
    add("mask_rate/requested", total[ALL, REQUESTED], total[ALL, MASKABLE])
    add("mask_rate/overflow", total[ALL, OVERFLOW], total[ALL, MASKED])
    return values
