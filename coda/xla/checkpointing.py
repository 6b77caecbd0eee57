"""Checkpoints under SPMD: one file, or a folder to which every host writes the parts it has.

The folder's layout is that of Lightning's ModelParallelStrategy: torch.distributed.checkpoint for weights and optimizer
states, under the names of the weights, and ``meta.pt`` for everything else. Both kinds are read into main memory, in the
form of a plain checkpoint, so that what was written on one mesh goes on on any other.
"""

import dataclasses
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.plugins.io import XLACheckpointIO
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from coda.checkpoint import WholeFileIO
from coda.checkpoint import read_checkpoint as read
from coda.files import replace_folder
from coda.sharded import REST, is_sharded, read_optimizers, read_weights
from coda.xla import consensus
from coda.xla.hosts import HostsStrategy
from coda.xla.sharding import Spec, shard_optimizer

if TYPE_CHECKING:
    from torch_xla.distributed.spmd import Mesh

Kind = Literal["sharded", "full"]
RANDOM = "xla_rng_state"  # the checkpoint's entry for the device's random state


class SPMDCheckpointIO(WholeFileIO, XLACheckpointIO):
    """Full checkpoints, written whole or not at all."""


class CheckpointedStrategy(HostsStrategy):
    """What a checkpoint holds, and how a run goes on from it.

    Args:
        checkpoint: ``sharded`` or ``full``.
        **parts: Of Lightning's strategy.

    Attributes:
        specs: How every parameter is divided.

    Raises:
        ValueError: If ``checkpoint`` is neither.
    """

    mesh: "Mesh"
    specs: dict[Tensor, Spec]

    def __init__(self, checkpoint: Kind, **parts: Any) -> None:
        if checkpoint not in ("sharded", "full"):
            raise ValueError(f"trainer.strategy.init_args.checkpoint is {checkpoint!r}; choose sharded or full")
        super().__init__(checkpoint_io=SPMDCheckpointIO(), **parts)
        self.checkpoint = checkpoint
        self._random: int | None = None  # to go on from

    def on_train_start(self) -> None:
        """Go on with the random numbers of a checkpoint: every program that ran since drew some."""
        import torch_xla.core.xla_model as xm

        if self._random is not None:
            xm.set_rng_state(self._random)
            self._random = None

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Weights: on the devices for a sharded checkpoint, else gathered in main memory."""
        assert self.lightning_module is not None
        if self.checkpoint == "sharded":
            return self.lightning_module.state_dict()
        return self.whole_state_dict()

    def whole_state_dict(self) -> dict[str, Any]:
        """Weights gathered in main memory, tied ones still one. Every host must call it."""
        assert self.lightning_module is not None
        weights: dict[str, Any] = whole(self.lightning_module.state_dict(keep_vars=True))  # parameters themselves
        return weights

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """State of ``optimizer``, as any other strategy would have it; where it is, see above."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        groups = [
            {**group, **({"capturable": False} if "capturable" in group else {})} for group in state["param_groups"]
        ]
        state = {**state, "param_groups": groups}
        return state if self.checkpoint == "sharded" else whole(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all. Every host must call it."""
        import torch_xla
        import torch_xla.core.xla_model as xm

        torch_xla.sync()
        checkpoint[RANDOM] = xm.get_rng_state()
        if self.checkpoint == "full":
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)
            return
        names = {parameter: name for name, parameter in self.lightning_module.named_parameters()}  # type: ignore[union-attr]
        order = [[names[p] for group in o.param_groups for p in group["params"]] for o in self.optimizers]
        write_sharded(checkpoint, Path(self.broadcast(str(filepath))), order)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of either kind, written under any strategy or mesh, into main memory."""
        checkpoint = read_checkpoint(str(checkpoint_path))
        self._random = checkpoint.get(RANDOM)
        return checkpoint

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Load optimizer states, in the formats they were saved in: PyTorch casts them to those of the weights."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(saved)
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for number, state in saved["state"].items():
                device_state = {key: move_data_to_device(value, self.root_device) for key, value in state.items()}
                optimizer.state[parameters[number]] = device_state
            shard_optimizer(optimizer, self.specs, self.mesh)


def whole(state: Any) -> Any:
    """Gather the tensors in ``state`` in main memory. Every host must call it."""
    copies: dict[int, Tensor] = {}  # tied weights stay one

    def gathered(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in copies:
            copies[id(value)] = value.detach().cpu()
        return copies[id(value)]

    return tree_map(gathered, state)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint of either kind into main memory, in the form of a plain one.

    Raises:
        ValueError: If it is missing, incomplete or not one of ours.
    """
    checkpoint = read(path)
    if is_sharded(path):
        checkpoint |= {"state_dict": read_weights(path), "optimizer_states": read_optimizers(path)}
    return checkpoint


def write_sharded(checkpoint: dict[str, Any], final: Path, names: list[list[str]]) -> None:
    """Write ``checkpoint`` to the folder ``final``, whole or not at all. Every host must call it.

    Args:
        checkpoint: A plain checkpoint whose tensors are on the devices.
        final: A folder that all hosts see; it replaces one that is there.
        names: The names of the parameters of each optimizer, in its order.

    Raises:
        ValueError: If ``final`` is a URL.
    """
    if ":/" in str(final):
        raise ValueError(f"a sharded checkpoint cannot go to {final}; mount it as a folder, or set checkpoint: full")
    unfinished = final.with_name(f".{final.name}.unfinished")
    first = consensus.rank() == 0
    if first:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed while it wrote
        unfinished.mkdir(parents=True)
    consensus.wait()
    rest = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
    with warnings.catch_warnings(action="ignore"):  # of torch about torch_xla's, and about a single process
        save(
            _flat(checkpoint, names),
            storage_writer=FileSystemWriter(unfinished, per_thread_copy_ahead=0),  # there are no streams
            planner=_save_planner(),
            no_dist=not consensus.connected(),
        )
    if first:
        torch.save(rest, unfinished / REST)
        replace_folder(unfinished, final)
    consensus.wait()


def _flat(checkpoint: dict[str, Any], names: list[list[str]]) -> dict[str, Any]:
    flat = {f"state_dict.{key}": value for key, value in checkpoint["state_dict"].items()}
    for i, (optimizer, parameters) in enumerate(zip(checkpoint.get("optimizer_states", []), names, strict=False)):
        for number, state in optimizer["state"].items():
            flat |= {f"optimizer_{i}.state.{parameters[number]}.{key}": value for key, value in state.items()}
        for g, group in enumerate(optimizer["param_groups"]):
            named = {**group, "params": [parameters[number] for number in group["params"]]}
            flat |= {f"optimizer_{i}.param_groups.{g}.{key}": value for key, value in named.items()}
    return flat


def _save_planner() -> SavePlanner:
    from torch_xla.experimental.distributed_checkpoint import SPMDSavePlanner

    class Planner(SPMDSavePlanner):
        def create_local_plan(self) -> Any:
            """Keep one of equal parts: where weights are copied along an axis, the parent's removes them all."""
            plan = super().create_local_plan()
            items = {item.index: item for item in reversed(plan.items)}
            return dataclasses.replace(plan, items=list(reversed(items.values())))

    return Planner()
