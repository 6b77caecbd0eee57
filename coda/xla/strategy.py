"""The strategy: Lightning's Trainer over all chips of a TPU pod, weights and batches divided by the compiler (SPMD)."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import find_shared_parameters, set_shared_parameters
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric

from coda.xla import consensus
from coda.xla.checkpointing import CheckpointedStrategy, Kind
from coda.xla.checks import check_model, check_optimizers, check_rows, check_trainer
from coda.xla.facts import facts_of
from coda.xla.flags import Flags, set_libtpu_flags
from coda.xla.hardware import SPMDAccelerator, check_runtime, peak_flops
from coda.xla.mesh import AXES, BATCH, build_mesh, size
from coda.xla.offload import check_offload
from coda.xla.precision import Format, SPMDPrecision
from coda.xla.scan import scan_layers
from coda.xla.sharding import ShardingMap, send_rows, shard, shard_optimizer


class XLASPMDStrategy(CheckpointedStrategy):
    """Trains one model on all XLA devices of all hosts: TPU slices, or the devices of a CPU.

    A process per host traces the program for all devices at once. ``PJRT_DEVICE`` picks the hardware, and
    ``trainer.accelerator`` and ``trainer.devices`` stay ``auto``.

    Example:
        .. code-block:: yaml

            trainer:
              precision: null # it is the strategy's
              strategy:
                class_path: coda.xla.XLASPMDStrategy
                init_args: {mesh: {data: 1, fsdp: -1, tensor: 1}, precision: bf16-mixed, gradient_checkpointing: true}

    Args:
        mesh: Devices along the axes ``data`` (each has whole weights), ``fsdp`` (weights and rows are divided) and
            ``tensor`` (weights and heads are divided, rows are not), over all slices; -1 is all that remain.
        slices: TPU slices along the same axes; None is a single slice.
        sharding: Which weight is divided how; None divides each over ``fsdp``.
        precision: See :class:`coda.xla.precision.SPMDPrecision`.
        gradient_checkpointing: Recompute each layer in the backward pass.
        scan_layers: Compile one layer for all of them. See :func:`coda.xla.scan.scan_layers`.
        offload: With ``scan_layers`` and ``gradient_checkpointing``: what is kept in the memory of the hosts between the
            forward and the backward pass, ``input`` (the hidden states that enter each layer) or parts of a layer whose
            results are then not computed again, such as ``self_attn``; None keeps the former on the device.
        libtpu_flags: Of the TPU's compiler and runtime, by name. See :func:`coda.xla.flags.set_libtpu_flags`.
        checkpoint: ``sharded``, a folder to which every host writes its part (all hosts must see the same folder), or
            ``full``, one file like that of any other strategy.

    Raises:
        ValueError: If torch_xla is missing, the hardware is not chosen, or the mesh does not match it.
    """

    strategy_name = "xla_spmd"

    def __init__(
        self,
        mesh: dict[str, int] | None = None,
        slices: dict[str, int] | None = None,
        sharding: ShardingMap | None = None,
        precision: Format = "bf16-mixed",
        gradient_checkpointing: bool = False,
        scan_layers: bool = False,
        offload: list[str] | None = None,
        libtpu_flags: Flags | None = None,
        checkpoint: Kind = "sharded",
    ) -> None:
        check_runtime()
        import torch_xla.runtime as xr
        from torch_xla.distributed.spmd import set_global_mesh

        set_libtpu_flags(libtpu_flags or {})
        xr.use_spmd()  # before any tensor is on a device
        check_offload(offload or [], scan_layers)
        super().__init__(checkpoint, accelerator=SPMDAccelerator(), precision_plugin=SPMDPrecision(precision))
        self.mesh = build_mesh(mesh or {"fsdp": -1}, slices or {})
        set_global_mesh(self.mesh)  # for the attention kernel
        self.split_rows = size(self.mesh, "tensor") == 1
        self.sharding = sharding if sharding is not None else ShardingMap()
        self.gradient_checkpointing = gradient_checkpointing
        self.scan_layers = scan_layers
        self.offload = offload or []
        self.specs = {}
        self._hooks: list[RemovableHandle] = []
        self._marked = self._compared = False

    # Building

    def setup_environment(self) -> None:
        """Join the hosts and seed the device alike on all of them.

        Raises:
            ValueError: If trainer or model are set to what is not for these devices.
        """
        import torch_xla

        assert self.accelerator is not None
        assert self.lightning_module is not None
        check_trainer(self.lightning_module.trainer, str(self.precision_plugin.precision))
        check_model(self.lightning_module)
        self.set_world_ranks()
        consensus.join_hosts(self.world_size)
        torch_xla.manual_seed(int(os.environ.get("PL_GLOBAL_SEED", 0)))
        self.accelerator.setup_device(self.root_device)

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Generator[None, None, None]:
        """Build on the CPU: weights get the same random numbers as anywhere, and go to the devices in parts."""
        with self.precision_plugin.tensor_init_context():
            yield

    def setup(self, trainer: Trainer) -> None:
        """Divide the model over the devices, once all hosts agree.

        Raises:
            ValueError: If sharding, model and mesh do not fit, hosts differ, or the optimizer is not for these devices.
        """
        assert self.accelerator is not None
        assert isinstance(self.model, LightningModule)
        self.accelerator.setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            check_rows(trainer, size(self.mesh, *BATCH))
        consensus.agree(facts_of(trainer, self.mesh))
        backbone: Any = self.model.backbone
        specs = self.sharding.specs(backbone, self.mesh)
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        parameters = dict(backbone.named_parameters(remove_duplicate=False))
        self.specs = {}
        for name, spec in specs.items():
            self.specs.setdefault(parameters[name], spec)
        for parameter, spec in self.specs.items():
            shard(parameter, self.mesh, spec)
        self._hooks = self.sharding.constrain(backbone, self.mesh)
        if self.scan_layers:
            self._hooks += scan_layers(backbone, self.gradient_checkpointing, self.offload)
        elif self.gradient_checkpointing or backbone.is_gradient_checkpointing:
            from torch_xla.utils.checkpoint import checkpoint

            backbone._set_gradient_checkpointing(True, checkpoint)  # that of torch is optimised away
        for metric in self.model.modules():
            if isinstance(metric, Metric):
                metric.sync_on_compute = metric._to_sync = False
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
            check_optimizers(self.optimizers)
        self.setup_precision_plugin()
        _optimizers_to_device(self.optimizers, self.root_device)
        self._marked = self._compared = False

    def model_to_device(self) -> None:
        """Move the model, its tied weights still tied."""
        assert self.model is not None
        shared = find_shared_parameters(self.model)
        self.model.to(self.root_device)
        set_shared_parameters(self.model, shared)

    def process_dataloader(self, dataloader: object) -> object:
        """Leave the loader as it is: Lightning's wrapper reads ahead, past where a run resumes."""
        return dataloader

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Divide the rows of ``batch`` over the devices.

        Raises:
            ValueError: If they do not divide, or if hosts that must read the same rows do not.
        """
        if not self.split_rows and not self._compared:
            self._compared = True
            rows = move_data_to_device(batch, torch.device("cpu"))
            consensus.agree({"the rows of a batch": consensus.digest(apply_to_collection(rows, Tensor, Tensor.tolist))})
        batch = apply_to_collection(batch, Tensor, self._send)
        return super().batch_to_device(batch, device, dataloader_idx)

    def _send(self, tensor: Tensor) -> Tensor:
        devices = size(self.mesh, *BATCH)
        rows = len(tensor) * self.distributed_sampler_kwargs["num_replicas"]
        if rows % devices:
            raise ValueError(
                f"a batch has {rows} rows, which the mesh's {devices} devices along {' x '.join(BATCH)} do not divide; "
                "change data.global_batch_size, trainer.accumulate_grad_batches or trainer.strategy.init_args.mesh"
            )
        return send_rows(tensor, self.mesh, self.root_device)

    def available_flops(self) -> float | None:
        """Peak FLOPs per second of all devices of all hosts together; None where it is not known."""
        peak = peak_flops()
        return None if peak is None else peak * size(self.mesh, *AXES)

    # Steps

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Run what callbacks left behind, so that every step is the same program."""
        self._run()

    def post_backward(self, closure_loss: Tensor) -> None:
        """Run a micro-batch that does not end a step: traced together, they would become one long program."""
        trainer = self.lightning_module.trainer  # type: ignore[union-attr]
        if trainer.fit_loop._should_accumulate():
            self._run()

    def optimizer_step(self, optimizer: Optimizer, closure: Any, model: Any = None, **kwargs: Any) -> Any:
        """Forward, backward and update as one program."""
        for group in optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True  # AdamW counts on the device: its corrections turn into the constant 1
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        if not self._marked:
            shard_optimizer(optimizer, self.specs, self.mesh)
            self._marked = True
        self._run()
        return result

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run each batch at once."""
        return self._ran(super().validation_step(*args, **kwargs))

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run each batch at once."""
        return self._ran(super().test_step(*args, **kwargs))

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run each batch at once; predictions are read on the host."""
        return move_data_to_device(super().predict_step(*args, **kwargs), torch.device("cpu"))

    def _ran(self, output: Any) -> Any:
        self._run()
        return output

    def _run(self) -> None:
        import torch_xla

        torch_xla.sync()

    def teardown(self) -> None:
        """Leave the model in main memory, its tied weights tied."""
        for hook in self._hooks:
            hook.remove()
        shared = find_shared_parameters(self.model) if self.model is not None else []
        super().teardown()
        if self.model is not None:
            set_shared_parameters(self.model, shared)
