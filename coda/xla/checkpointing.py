"""Checkpoints under SPMD: one file, or a folder to which every host writes the parts it has.

The folder's layout is that of Lightning's ModelParallelStrategy: torch.distributed.checkpoint for weights and optimizer
states, under the names of the weights, and ``meta.pt`` for everything else. Both kinds are read into main memory, in the
form of a plain checkpoint, so that what was written on one mesh goes on on any other.
"""

import dataclasses
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import XLACheckpointIO
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.utils._pytree import tree_map

from coda.checkpoint import WholeFileIO
from coda.checkpoint import read_checkpoint as read
from coda.files import replace_folder
from coda.sharded import REST, is_sharded, read_optimizers, read_weights
from coda.xla import consensus


class SPMDCheckpointIO(WholeFileIO, XLACheckpointIO):
    """Full checkpoints, written whole or not at all."""


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
