"""Benchmark scores while the model learns, and in ``main.py test``."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info

from callbacks.throughput import paused
from coda.evaluation.benchmarks import Benchmarks
from coda.evaluation.ranks import Ranks
from coda.evaluation.results import RESULTS, environment, fingerprint, table
from coda.evaluation.sandbox import Sandbox
from coda.files import write_json
from coda.steps import ends_step, replicas


class BenchmarkEvaluation(Callback):
    """Draws solutions of benchmark problems with the real sampler, runs them in the sandbox and logs the scores.

    Logs ``evaluation/TASK/pass@1`` and their like. Validation and training score a part of each task; ``main.py test``
    scores as much as ``test_limit`` says and writes what ``python -m coda.evaluate`` does into the logger's folder.

    Args:
        tasks: Names of tasks, see :mod:`coda.evaluation.tasks`; empty evaluates nothing.
        limit: The first so many problems of each task, while training.
        test_limit: The same in ``main.py test``; None takes all.
        every_n_steps: Optimizer steps between evaluations; 0 evaluates at validation only.
        at_validation: Also evaluate whenever the model is validated.
        **options: See :class:`coda.evaluation.benchmarks.Benchmarks`.
    """

    def __init__(
        self,
        tasks: list[str] | None = None,
        limit: int = 16,
        test_limit: int | None = None,
        every_n_steps: int = 0,
        at_validation: bool = True,
        **options: Any,
    ) -> None:
        if every_n_steps < 0:
            raise ValueError(f"evaluation.every_n_steps is {every_n_steps}; give a number of steps, or 0 for never")
        self.tasks = tasks or []
        self.limit, self.test_limit = limit, test_limit
        self.every_n_steps = every_n_steps
        self.at_validation = at_validation
        self.options = options
        self.benchmarks: Benchmarks | None = None
        self.sandbox: Sandbox | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the problems and try the sandbox, before the first step.

        Raises:
            ValueError: Naming the setting.
        """
        if not self.tasks or stage not in ("fit", "validate", "test"):
            return
        try:
            self.benchmarks = Benchmarks(
                self.tasks, limit=self.test_limit if stage == "test" else self.limit, **self.options
            )
            self.sandbox = self.benchmarks.sandbox() if trainer.is_global_zero else None
        except ValueError as error:
            raise ValueError(f"evaluation: {error}") from error

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out before the first step what does not fit the model. Raises ValueError if something does not."""
        if self.benchmarks is not None:
            try:
                self.benchmarks.check(pl_module.backbone, trainer.datamodule.tokenizer)  # type: ignore[arg-type, attr-defined]
            except ValueError as error:
                raise ValueError(f"evaluation: {error}") from error

    on_test_start = on_fit_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate every N optimizer steps."""
        due = self.every_n_steps and ends_step(trainer, batch_idx) and trainer.global_step % self.every_n_steps == 0
        if self.benchmarks is not None and due:
            with paused(trainer):
                self.evaluate(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate with validation, whose time does not count as training."""
        if self.benchmarks is not None and self.at_validation and not trainer.sanity_checking:
            self.evaluate(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate, write down everything that shaped the numbers, and print the table."""
        if self.benchmarks is None:
            return
        output = Path(trainer.log_dir or trainer.default_root_dir) / "evaluation"
        identity = {"precision": str(trainer.precision)}
        if _whole(trainer):
            identity["weights"] = fingerprint(pl_module.backbone)  # type: ignore[arg-type]
        results = self.evaluate(trainer, pl_module, output, identity)
        if self.sandbox is None:
            return
        settings = {
            "checkpoint": trainer.ckpt_path,
            **identity,
            "ranks": trainer.world_size,
            **self.benchmarks.describe(),
        }
        report = {"settings": settings, "environment": environment(), "sandbox": self.sandbox.level, "results": results}
        write_json(output / RESULTS, report)
        rank_zero_info(f"everything that shaped these numbers is in {output / RESULTS}\n{table(results)}")

    def evaluate(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        output: Path | None = None,
        identity: dict[str, Any] | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Score the model as it is and log the scores. Copies of a model share the work; a sharded one needs all ranks."""
        assert self.benchmarks is not None
        whole, model = _whole(trainer), pl_module.backbone
        ranks = Ranks(trainer.global_rank, trainer.world_size) if whole else Ranks()
        kept = output if whole else None  # the shards must all do the same, whatever one finds on its disk
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        training = pl_module.training
        pl_module.eval()
        with trainer.precision_plugin.forward_context():
            results = self.benchmarks.run(model, tokenizer, self.sandbox, ranks, kept, identity, progress=False)  # type: ignore[arg-type]
        pl_module.train(training)
        scores = {
            f"evaluation/{run}/{name}": value["mean"] if isinstance(value, dict) else value
            for run, given in results.items()
            for name, value in given.items()
            if name in ("edit_distance", "evalplus") or (isinstance(value, dict) and "mean" in value)
        }
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # where Lightning puts the bound of this validation
        for logger in trainer.loggers:
            logger.log_metrics(scores, step=step)
        return results


def _whole(trainer: Trainer) -> bool:
    """Whether every rank has the whole model, to run by itself."""
    return trainer.world_size == 1 or (isinstance(trainer.strategy, DDPStrategy) and replicas(trainer) > 1)
