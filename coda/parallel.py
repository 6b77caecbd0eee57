"""Fully sharded data parallelism (FSDP2): every device keeps its share of weights, gradients and optimizer state."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, zeros
from transformers import Adafactor

from coda.checkpoint import RECORD, read_checkpoint
from coda.files import replace_folder
from coda.model import CoDALanguageModel


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with all devices in one data-parallel group, over which the model is sharded.

    Each decoder layer is a unit that is gathered for its forward and its backward pass alone; embedding, final norm and
    output head stay gathered in between. Gradients are averaged over devices as under DDP, once per optimizer step
    however many micro-batches accumulate. Checkpoints are folders to which every device writes its share (see
    ``save_distributed_checkpoint``), whole or not at all.

    Args:
        gather_dtype: Weights are gathered in this dtype: with bf16 half of what is sent, and a residual stream in bf16
            instead of float32. Gradients are summed in float32, and the sharded weights stay float32.
        reshard_after_forward: Gather layers anew for the backward pass; false sends a third less and keeps all weights.
        save_distributed_checkpoint: False writes one ordinary .ckpt from the first process.
        process_group_backend: ``nccl`` or ``gloo``; None chooses by device.
    """

    def __init__(
        self,
        gather_dtype: Literal["float32", "bfloat16"] = "float32",
        reshard_after_forward: bool = True,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint, process_group_backend=process_group_backend
        )
        self.gather_dtype = gather_dtype
        self.reshard_after_forward = reshard_after_forward

    def setup_environment(self) -> None:
        """Have every device shard: Lightning's default is tensor parallelism inside a node."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, model: CoDALanguageModel) -> None:
        """Shard ``model`` in place: its decoder layers one by one, then what is left."""
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if self.gather_dtype == "bfloat16" else None, reduce_dtype=torch.float32
        )
        mesh = self.device_mesh["data_parallel"]
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=self.reshard_after_forward)
        # Losses and samplers multiply by the head's weight outside of the forward pass, so it stays gathered behind it.
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Build the optimizers over the shards."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if isinstance(optimizer, Adafactor):
                shard_adafactor_state(optimizer)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keep gradients where they are made, for micro-batches that do not end an optimizer step."""
        assert self.model is not None
        roots = [module for module in self.model.children() if isinstance(module, FSDPModule)]
        for root in roots:
            root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            for root in roots:
                root.set_requires_gradient_sync(True)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a sharded checkpoint beside its final name, and rename the folder once all devices are done."""
        path = Path(self.broadcast(filepath))
        unfinished = path.with_name(f".{path.name}.unfinished")
        super().save_checkpoint(checkpoint, unfinished, storage_options)
        self.barrier()
        if self.is_global_zero:
            replace_folder(unfinished, path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint of any strategy and number of devices.

        Raises:
            ValueError: If it is missing, incomplete or not one of ours; or if its output head is its own and the model's is
                not: shards cannot be separated any more.
        """
        path = Path(self.broadcast(checkpoint_path))
        rest = read_checkpoint(str(path))
        assert self.lightning_module is not None
        config = self.lightning_module.backbone.config  # type: ignore[union-attr]
        if config.tie_word_embeddings and not rest[RECORD]["config"]["tie_word_embeddings"]:  # type: ignore[union-attr]
            raise ValueError(
                f"{path} has an output head of its own, but the model shares it with the embedding; go on with the "
                "model.backbone and model.init_from that the run began with"
            )
        return super().load_checkpoint(checkpoint_path, weights_only)


def shard(model: CoDALanguageModel, strategy: Strategy) -> None:
    """Shard ``model`` if ``strategy`` does that; to be called once the model is built.

    Raises:
        ValueError: For Lightning's own sharded strategies, which do not know how to shard this model.
    """
    if isinstance(strategy, FSDP2Strategy):
        strategy.shard(model)
    elif isinstance(strategy, (ModelParallelStrategy, FSDPStrategy)):
        raise ValueError(
            f"trainer.strategy is {type(strategy).__name__}; the strategy that shards this model is "
            "coda.parallel.FSDP2Strategy"
        )


def shard_adafactor_state(optimizer: Adafactor) -> None:
    """Make the state that transformers' Adafactor would make unsharded, which no operation with shards takes."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            state.update(step=0, RMS=_zeros(parameter, [], [Replicate()]))
            if group["beta1"] is not None:
                state["exp_avg"] = torch.zeros_like(parameter)
            if parameter.ndim < 2:
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            else:
                *rows, columns = parameter.shape
                state["exp_avg_sq_row"] = _zeros(parameter, rows, parameter.placements)
                state["exp_avg_sq_col"] = _zeros(parameter, [*rows[:-1], columns], [Replicate()])


def _zeros(like: DTensor, shape: list[int], placements: Any) -> Tensor:
    return zeros(shape, dtype=torch.float32, device_mesh=like.device_mesh, placements=placements)
