"""Sharded checkpoints: a folder to which every process of a run wrote its own part of the weights.

The layout is that of Lightning's strategies: files of torch.distributed.checkpoint for weights and optimizer states, and
``meta.pt`` for everything else. Read here on one process, into main memory.
"""

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

REST = "meta.pt"
INDEX = ".metadata"
WEIGHTS = ("state_dict.", "model.")  # the entry of the weights, as ModelParallelStrategy and as FSDPStrategy call it
PLAIN = {
    *(("builtins", name) for name in ("dict", "list", "set", "tuple", "int", "str", "bool")),
    *(("pathlib", name) for name in ("Path", "PosixPath", "PurePosixPath")),
    ("pathlib._local", "PosixPath"),  # Python 3.13's name for it
    ("collections", "OrderedDict"),
    ("torch.serialization", "_get_layout"),
}


class _IndexUnpickler(pickle.Unpickler):
    """Reads an index of shards and nothing else: a checkpoint from elsewhere must not run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in PLAIN:
            return super().find_class(module, name)
        found = super().find_class(module, name) if module.split(".")[0] == "torch" and "." not in name else None
        ours = isinstance(found, type) and found.__module__.startswith("torch.distributed.checkpoint")
        if not (ours or isinstance(found, torch.dtype) or found is torch.Size):
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return found


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index, without running what it may hold."""
        with (Path(self.path) / INDEX).open("rb") as file:
            index: Metadata = _IndexUnpickler(file).load()
        return index


def is_sharded(path: str) -> bool:
    """Whether ``path`` is a folder with a sharded checkpoint, or with what is left of one."""
    return any((Path(path) / name).is_file() for name in (INDEX, REST)) or any(Path(path).glob("__*_*.distcp"))


def read_rest(path: str) -> dict[str, Any]:
    """Read what ``path`` holds besides weights and optimizer states, and check that its shards are all there.

    Raises:
        ValueError: Naming the files that are missing or cut short.
    """
    for name in (INDEX, REST):  # written last
        if not (Path(path) / name).is_file():
            raise ValueError(f"{path!r} is an unfinished sharded checkpoint: it lacks {name}; take another checkpoint")
    _check_shards(path, _read_index(path))
    try:
        return dict(torch.load(Path(path) / REST, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{path!r} is no readable checkpoint: {REST}: {error}") from error


def read_weights(path: str) -> dict[str, Tensor]:
    """Put the weights of the checkpoint ``path`` together, in main memory; optimizer states are not read.

    Raises:
        ValueError: If shards are missing or damaged.
    """
    index = _read_index(path)
    _check_shards(path, index)
    entry, weights = _empty_weights(index)
    _fill({entry: weights}, path)
    return weights


def _fill(state: dict[str, Any], path: str, planner: DefaultLoadPlanner | None = None) -> None:
    """Read what ``state`` names. Raises ValueError if it is damaged."""
    try:
        with warnings.catch_warnings(action="ignore"):  # that this is one process is meant
            load(state, storage_reader=_Reader(path), planner=planner, no_dist=True)
    except (Exception, CheckpointException) as error:  # a BaseException, of many lines
        raise ValueError(f"{path!r} is no readable checkpoint: one of its shards is damaged") from error


def _read_index(path: str) -> Metadata:
    try:
        return _Reader(path).read_metadata()
    except Exception as error:
        raise ValueError(f"{path!r} is no readable checkpoint: {INDEX}: {error}") from error


def _empty_weights(index: Metadata) -> tuple[str, dict[str, Tensor]]:
    for entry in WEIGHTS:
        found = {
            key.removeprefix(entry): torch.empty(value.size, dtype=value.properties.dtype)
            for key, value in index.state_dict_metadata.items()
            if key.startswith(entry) and isinstance(value, TensorStorageMetadata)
        }
        if found:
            return entry.removesuffix("."), found
    return WEIGHTS[0].removesuffix("."), {}


def _check_shards(path: str, index: Metadata) -> None:
    """Compare the files with the index: each must be there, and reach as far as its last entry."""
    needed: dict[str, int] = {}
    for place in (index.storage_data or {}).values():
        needed[place.relative_path] = max(needed.get(place.relative_path, 0), place.offset + place.length)
    there = {name: (Path(path) / name).stat().st_size for name in needed if (Path(path) / name).is_file()}
    absent = sorted(needed.keys() - there.keys())
    short = sorted(name for name, size in there.items() if size < needed[name])
    for what, names in (("lacks", absent), ("was cut short in", short)):
        if names:
            raise ValueError(
                f"the sharded checkpoint {path!r} {what} {', '.join(names)}; copy the files that all processes wrote into "
                "one folder, or take another checkpoint"
            )


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Keep what is no tensor, without running what it may hold."""
        self.original_state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)


def read_optimizers(path: str) -> list[dict[str, Any]]:
    """Put the optimizer states of the checkpoint ``path`` together, as a plain one has them: parameters by number.

    Raises:
        ValueError: If shards are missing or damaged.
    """
    index = _read_index(path)
    _check_shards(path, index)
    state = {
        key: torch.empty(value.size, dtype=value.properties.dtype) if isinstance(value, TensorStorageMetadata) else None
        for key, value in index.state_dict_metadata.items()
        if key.startswith("optimizer_")
    }
    _fill(state, path, _Planner(flatten_state_dict=False))
    return [_numbered(name, state) for name in sorted({key.split(".")[0] for key in state})]


def _numbered(optimizer: str, flat: dict[str, Any]) -> dict[str, Any]:
    """Turn the entries ``OPTIMIZER.state.PARAMETER.NAME`` and ``OPTIMIZER.param_groups.NUMBER.NAME`` into a state."""
    groups: dict[int, dict[str, Any]] = {}
    states: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        if key.startswith(f"{optimizer}.param_groups."):
            _, _, number, name = key.split(".")
            groups.setdefault(int(number), {})[name] = value
        elif key.startswith(f"{optimizer}.state."):
            parameter, _, name = key.removeprefix(f"{optimizer}.state.").rpartition(".")
            states.setdefault(parameter, {})[name] = value
    ordered = [groups[number] for number in sorted(groups)]
    numbers = {name: i for i, name in enumerate(name for group in ordered for name in group["params"])}
    for group in ordered:
        group["params"] = [numbers[name] for name in group["params"]]
    return {"state": {numbers[name]: state for name, state in states.items()}, "param_groups": ordered}
