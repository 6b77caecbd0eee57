"""The LightningModule: wires backbone, masking, objective and optimizer."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from coda.adapter import Adapter, check_adapter
from coda.checkpoint import RECORD, load_weights, recount_micro_batches
from coda.data.mixture import mix
from coda.masking import MaskedBatch, MaskingStrategy, RandomMasking
from coda.model import AttentionAnnealing, Backbone, CoDALanguageModel
from coda.model.flops import training_flops
from coda.model.modeling_coda import untie
from coda.model.sampling_coda import row_noise
from coda.objective import DiffusionObjective, ObjectiveOutput
from coda.optimization import ConstantRate, LearningRateSchedule
from coda.parallel import shard
from coda.preflight import check_fit
from coda.release.record import record_of, runs_of
from coda.steps import ends_step, replicas


class DiffusionModule(L.LightningModule):
    """Trains a bidirectional Qwen3 by masked diffusion (arXiv 2510.03270).

    Training masks with ``masking`` and minimises ``objective``. Validation is always the same quantity, whatever the
    training: the likelihood bound of eq. 6 in nats per token, under random masking with noise that is fixed for each row.

    Args:
        backbone: The model to train.
        masking: How training batches are masked.
        optimizer: Called with parameter groups; vectors (norms) are exempt from weight decay. It has no default, because
            the settings of a default class would be taken over by the class that replaces it.
        objective: Noise levels, loss weights and denominator; None is the plain likelihood bound.
        lr_schedule: Learning rate over training, as multiples of the optimizer's; None keeps it constant.
        init_from: Start from these weights alone (a .ckpt or an exported folder): how one stage follows another.
        annealing: Restrict attention to the future early in training; None attends to both sides at once.
        adapter: What learns instead of the weights (LoRA, DoRA), on top of ``init_from``; None trains all of them.
        seed: Of noise levels and masks. A row's are a function of seed, step and its number in the order of training
            (``sample`` of the batch), whatever ranks and accumulation.
    """

    backbone: CoDALanguageModel
    config: dict[str, Any] | None = None  # what the command line was given, for the record of the run
    earlier: Sequence[dict[str, Any]] = ()  # records of the runs behind init_from

    def __init__(
        self,
        backbone: Backbone,
        masking: MaskingStrategy,
        optimizer: OptimizerCallable,
        objective: DiffusionObjective | None = None,
        lr_schedule: LearningRateSchedule | None = None,
        init_from: str | None = None,
        annealing: AttentionAnnealing | None = None,
        adapter: Adapter | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone_source = backbone
        self.masking = masking
        self.objective = objective if objective is not None else DiffusionObjective()
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.init_from = init_from
        self.annealing = annealing
        self.adapter = adapter
        self.seed = seed
        self.bound_masking = RandomMasking()
        self.bound_objective = DiffusionObjective(shift=self.objective.shift, chunk_size=self.objective.chunk_size)
        self.bound, self.accuracy = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self._generator: torch.Generator | None = None
        self._loss_sum = self._denominator = torch.zeros(())
        self._batch_idx = 0

    # Building

    def configure_model(self) -> None:
        """Build the backbone, once the data module has a tokenizer.

        Raises:
            ValueError: If data, tokenizer and model do not fit each other.
        """
        if hasattr(self, "backbone"):
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        resuming = self.trainer.ckpt_path is not None
        self.check(data, resuming)
        self.backbone = self.backbone_source.build(data.tokenizer, load_weights=not (resuming or self.init_from))
        self.backbone.config.shift = self.objective.shift
        if self.init_from and not resuming:
            load_weights(self.backbone, self.init_from)
            self.earlier = runs_of(self.init_from)
        if self.adapter is not None:
            self.adapter(self.backbone)
        shard(self.backbone, self.trainer.strategy)

    def check(self, data: Any, resuming: bool) -> None:
        """Find out what does not fit: see :func:`coda.preflight.check_fit`."""
        check_fit(data, self.backbone_source, self.objective.shift, self.init_from, resuming)

    def configure_optimizers(self) -> Any:
        """Build the optimizer over matrices and vectors, and the schedule by optimizer step."""
        optimizer = self.optimizer(self._parameter_groups())
        self._configured = [{key: group[key] for key in optimizer.defaults} for group in optimizer.param_groups]
        total, schedule = self.trainer.estimated_stepping_batches, self.lr_schedule or ConstantRate()
        if schedule.warmup >= total:
            rank_zero_warn(
                f"lr_schedule.warmup is {schedule.warmup:g} steps of {total:g}: the peak rate is never reached"
            )
        scheduler = LambdaLR(optimizer, lambda step: schedule(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _parameter_groups(self) -> Iterable[Any]:
        trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if parameter.ndim > 1]
        vectors = [parameter for parameter in trained if parameter.ndim <= 1]
        return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]

    # Training

    def on_fit_start(self) -> None:
        """Check that progress can be told. Raises ValueError if the length of training is not set."""
        if self.trainer.estimated_stepping_batches == float("inf"):
            raise ValueError("the length of training is not set; give trainer.max_steps (or trainer.max_epochs)")

    def on_train_start(self) -> None:
        """Let the configured hyperparameters win over those that a resumed optimizer brought along in its state."""
        (optimizer,), scheduler = self.trainer.optimizers, self.lr_schedulers()
        assert isinstance(scheduler, LambdaLR)
        for group, configured in zip(optimizer.param_groups, self._configured, strict=True):
            group.update(configured)
        scheduler.base_lrs = [group["lr"] for group in self._configured]
        for group, peak, factor in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = peak, peak * factor(scheduler.last_epoch)

    @property
    def progress(self) -> float:
        """Share of optimizer steps done, in [0, 1]."""
        return min(self.trainer.global_step / self.trainer.estimated_stepping_batches, 1.0)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Return the sum of weighted losses; :meth:`on_after_backward` divides once the whole global batch is summed."""
        micro_batches = self.trainer.accumulate_grad_batches * replicas(self.trainer)
        output, masked, t = self.diffuse(batch, self.masking, self.objective, len(batch["sample"]) * micro_batches)
        self._batch_idx = batch_idx
        report = replace(output, loss_sum=output.loss_sum.detach())
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._loss_sum, self._denominator = torch.zeros_like(report.loss_sum), torch.zeros_like(report.denominator)
        self._loss_sum, self._denominator = self._loss_sum + report.loss_sum, self._denominator + report.denominator
        return {"loss": output.loss_sum, "output": report, "t": t, "applied": masked.applied}

    def diffuse(
        self,
        batch: dict[str, Tensor],
        masking: MaskingStrategy,
        objective: DiffusionObjective,
        batch_size: int,
    ) -> tuple[ObjectiveOutput, MaskedBatch, Tensor]:
        """Draw noise levels and masks, run the model, and return the loss sums, what was masked, and t [B].

        ``batch_size`` counts the rows over which noise levels are spread.
        """
        ids, segments, training = batch["input_ids"], batch.get("segment_ids"), self.training
        # Far apart for other seeds, and for validation, so that no two rows share their noise.
        seeds = batch["sample"] + (mix(self.seed, int(training)) >> 2)
        rotation = mix(self.seed, self.trainer.global_step) >> 33 if training else 0
        t = objective.time.sample(batch["sample"], batch_size, row_noise(seeds, 0, 1)[:, 0], self._moving(rotation))
        masked = masking(
            ids,
            objective.predictable(batch["maskable"], segments),
            t,
            self._moving(self.progress if training else 1.0),
            mask_token_id=self.backbone.config.mask_token_id,
            pad_token_id=self.backbone.config.pad_token_id,
            seeds=seeds,
        )
        visible = None
        if self.annealing is not None and training:
            generator = self.seeded_generator(self.trainer.global_step)
            visible = self.annealing.visible(ids.shape[1], self.progress, ids.device, generator)
        chosen = objective.select(masked.masked)  # before the body: see ExactSelection
        hidden = self.backbone(
            masked.noisy_input_ids,
            attention_mask=both(batch.get("attention_mask"), masked.attention_mask),
            segment_ids=segments,
            output_logits=False,
            visible=visible,
        ).last_hidden_state
        head = self.backbone.lm_head.weight
        output = objective(hidden, head, masked.target_ids, masked.masked, masked.maskable, t, chosen)
        return output, masked, t

    def _moving(self, value: float) -> Any:
        """A number that changes from step to step: XLA would compile a plain one, or one of no dimension, into the step."""
        return torch.tensor([value], device=self.device) if self.device.type == "xla" else value

    def on_after_backward(self) -> None:
        """Before the optimizer steps, turn the summed gradient into that of the loss of the whole global batch; log it.

        The denominator is only known once all micro-batches of all ranks are masked. The Trainer divided the sum by the
        number of micro-batches and the strategy by the number of ranks; both are undone here.
        """
        if not ends_step(self.trainer, self._batch_idx):
            return
        sums = torch.stack([self._denominator, self._loss_sum])
        if replicas(self.trainer) > 1:
            torch.distributed.all_reduce(sums)  # Lightning's reduce would put a barrier before it
        total, loss_sum = sums
        self.log("train/loss", loss_sum / total.clamp(min=1))
        scale = self.trainer.accumulate_grad_batches * replicas(self.trainer) / total.clamp(min=1)
        gradients = [parameter.grad for parameter in self.backbone.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, scale)

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """See :meth:`on_test_epoch_start`."""
        self.on_test_epoch_start()

    def on_test_epoch_start(self) -> None:
        """Keep sums in float32: half-precision training casts them along with the model, and they would stop growing."""
        for metric in (self.bound, self.accuracy):
            metric.set_dtype(torch.float32)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add to the likelihood bound, ``val/bound`` in nats per token."""
        self._evaluate("val", batch, batch_idx, sum(self.trainer.num_val_batches))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add to the likelihood bound, ``test/bound`` in nats per token."""
        self._evaluate("test", batch, batch_idx, sum(self.trainer.num_test_batches))

    def _evaluate(self, stage: str, batch: dict[str, Tensor], batch_idx: int, batches: float) -> None:
        rows = max(int(batches), batch_idx + 1) * len(batch["sample"]) * replicas(self.trainer)
        output, _, _ = self.diffuse(batch, self.bound_masking, self.bound_objective, rows)
        self.bound.update(output.loss_sum / output.denominator.clamp(min=1), output.denominator)
        masked = output.masked.sum()
        self.accuracy.update(output.correct.sum() / masked.clamp(min=1), masked)
        self.log_dict({f"{stage}/bound": self.bound, f"{stage}/accuracy": self.accuracy}, on_epoch=True, on_step=False)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Write what follows the prompt of every row, or its second half, with the sampler.

        Returns ``reference`` and ``sequences``, int64 [B, L], and ``written``, bool [B, L], what the model had to write.
        """
        ids, maskable = batch["input_ids"], batch["maskable"]
        half = torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] // 2
        written = torch.where(maskable.all(dim=1, keepdim=True), half, maskable)
        canvas = ids.masked_fill(written, self.backbone.config.mask_token_id)
        sequences = self.backbone.diffusion_generate(
            canvas, batch.get("attention_mask"), max_new_tokens=0, seed=self.seed
        )
        return {"reference": ids, "sequences": sequences, "written": written}

    def seeded_generator(self, step: int) -> torch.Generator | None:
        """The source of randomness that all rows of a step share; None on devices without generators (XLA)."""
        if self.device.type == "xla":
            return None
        if self._generator is None or self._generator.device != self.device:
            self._generator = torch.Generator(self.device)
        return self._generator.manual_seed(hash((self.seed, step)) % 2**63)

    # What monitors and checkpoints ask for

    def flops(self, rows: int, length: int) -> float:
        """Expected FLOPs of a training step over ``rows`` rows of ``length`` tokens, half of which are masked."""
        return training_flops(self.backbone.config, rows, length, predicted=0.5 * rows * length)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record config, tokenizer and the run beside the weights."""
        checkpoint[RECORD] = record_of(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the output head its own weights if those of the checkpoint are, and count in this run's micro-batches."""
        check_adapter(self.backbone, checkpoint[RECORD].get("adapter"))
        self.earlier = checkpoint[RECORD].get("run", {}).get("earlier", ())
        if not checkpoint[RECORD]["config"]["tie_word_embeddings"]:
            untie(self.backbone)
        if "loops" in checkpoint:
            by_steps = self.trainer.max_steps != -1  # type: ignore[attr-defined]
            recount_micro_batches(checkpoint["loops"]["fit_loop"], self.trainer.accumulate_grad_batches, by_steps)


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Where both masks are True; None is one that is True everywhere."""
    if first is None or second is None:
        return first if second is None else second
    return first & second
