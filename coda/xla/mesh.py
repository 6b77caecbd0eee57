"""The mesh: how the devices of all hosts are arranged into axes over which batches and weights are divided."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch_xla.distributed.spmd import Mesh

# From the axis that communicates least to the one that communicates most: a batch is divided over data and fsdp, a weight
# over fsdp and tensor.
AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
SETTING = "trainer.strategy.init_args"


def resolve(sizes: dict[str, int], devices: int, setting: str = "mesh") -> tuple[int, ...]:
    """Turn ``sizes`` by axis into a shape (data, fsdp, tensor) over ``devices``.

    Args:
        sizes: Devices along each axis; an axis left out has 1, and one may have -1: all that remain.
        devices: How many there are.
        setting: Name of the setting, for errors.

    Raises:
        ValueError: If the axes do not exist or do not multiply to ``devices``.
    """
    unknown = sizes.keys() - set(AXES)
    if unknown:
        raise ValueError(f"{SETTING}.{setting} has an axis {min(unknown)!r}; the axes are {', '.join(AXES)}")
    shape = [sizes.get(axis, 1) for axis in AXES]
    wrong = [size for size in shape if size < 1 and size != -1]
    if wrong or shape.count(-1) > 1:
        raise ValueError(f"{SETTING}.{setting} is {sizes}; give sizes of at least 1, and -1 to at most one axis")
    known = math.prod(size for size in shape if size != -1)
    if devices % known == 0:
        shape = [devices // known if size == -1 else size for size in shape]
    if math.prod(shape) != devices:
        raise ValueError(
            f"{SETTING}.{setting} is {sizes}, {' x '.join(map(str, shape))}, but there are {devices} "
            f"{'devices' if setting == 'mesh' else 'slices'}; change the sizes, or give one axis -1 for all that remain"
        )
    return tuple(shape)


def build_mesh(sizes: dict[str, int], slices: dict[str, int]) -> "Mesh":
    """Arrange all devices.

    Args:
        sizes: Devices along each axis, over all slices.
        slices: TPU slices along each axis, which are joined by the data-centre network; empty for one slice.

    Raises:
        ValueError: If sizes or slices do not match what is there.
    """
    import torch_xla.runtime as xr

    attributes = xr.global_runtime_device_attributes()
    shape = resolve(sizes, len(attributes))
    groups = len({device.get("slice_index", 0) for device in attributes})
    outer = resolve(slices, groups, "slices")
    uneven = [axis for axis, total, part in zip(AXES, shape, outer, strict=True) if total % part]
    if uneven:
        raise ValueError(
            f"{SETTING}.slices is {slices}, but {uneven[0]} has {shape[AXES.index(uneven[0])]} devices in all, which its "
            "slices do not divide; change either"
        )
    return _arrange(attributes, shape, outer)


def _arrange(attributes: list[dict[str, Any]], shape: tuple[int, ...], outer: tuple[int, ...]) -> "Mesh":
    from torch_xla.distributed.spmd import HybridMesh, Mesh

    one_slice = math.prod(outer) == 1 and "slice_index" in attributes[0]  # which the hybrid mesh refuses
    if "coords" not in attributes[0] or one_slice:
        return Mesh(list(range(len(attributes))), shape, AXES)
    inner = tuple(total // part for total, part in zip(shape, outer, strict=True))
    return HybridMesh(ici_mesh_shape=inner, dcn_mesh_shape=outer, axis_names=AXES)


def size(mesh: "Mesh", *axes: str) -> int:
    """Devices along ``axes`` together."""
    return math.prod(int(mesh.shape()[axis]) for axis in axes)
