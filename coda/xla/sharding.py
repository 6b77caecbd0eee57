"""Which dimension of which weight is divided over which axis of the mesh, and that activations follow.

Modules are not wrapped: weights keep their names and shapes, and the compiler adds the communication.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from coda.xla.mesh import AXES, BATCH, size

if TYPE_CHECKING:
    from torch_xla.distributed.spmd import Mesh

Axis = str | list[str] | None
Spec = tuple[str | tuple[str, ...] | None, ...]

# The residual stream, divided by rows: without it the compiler may follow the weights and divide the hidden size.
ROWS: dict[str, list[Axis]] = {
    name: [list(BATCH), None, None] for name in ("model.embed_tokens", "model.layers.*", "model.norm")
}


class ShardingMap:
    """Name patterns to mesh axes, one entry per dimension; ``*`` stands for one part of a name between dots.

    Names are those of the backbone's state dict, ``model.layers.0.self_attn.q_proj.weight``. The first pattern that fits
    counts. A weight without one is divided over ``fsdp`` along its largest dimension that ``fsdp`` divides.

    Args:
        parameters: By parameter. The entry of a dimension is an axis, a list of axes, or null: not divided.
        activations: By module, for what it returns; None divides the residual stream by rows.
    """

    def __init__(
        self,
        parameters: dict[str, list[Axis]] | None = None,
        activations: dict[str, list[Axis]] | None = None,
    ) -> None:
        self.parameters = _read("parameters", parameters or {})
        self.activations = _read("activations", ROWS if activations is None else activations)

    def specs(self, model: nn.Module, mesh: "Mesh") -> dict[str, Spec]:
        """The axes of every parameter of ``model``, under all its names.

        Raises:
            ValueError: If a pattern fits nothing or has another number of dimensions, if an axis does not divide its
                dimension or the attention heads, or if nothing is divided over ``tensor`` although the mesh has it.
        """
        shapes = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
        _check_used("parameters", self.parameters, shapes)
        specs = {}
        for name, shape in shapes.items():
            found = _first(self.parameters, name)
            specs[name] = _automatic(shape, size(mesh, "fsdp")) if found is None else _fitted(name, shape, found, mesh)
        devices = size(mesh, "tensor")
        if devices > 1 and not any("tensor" in _axes(entry) for spec in specs.values() for entry in spec):
            raise ValueError(
                f"trainer.strategy.init_args.mesh has {devices} devices along tensor, but no weight is divided over them, "
                "and all would do the same; set trainer.strategy.init_args.sharding to "
                "configs/sharding/qwen3_fsdp_tensor.yaml, or tensor to 1"
            )
        _check_heads(model, specs, mesh)
        return specs

    def constrain(self, model: nn.Module, mesh: "Mesh") -> list[RemovableHandle]:
        """Have modules divide what they return, and its gradient. Raises ValueError if a pattern fits no module."""
        modules = dict(model.named_modules())
        _check_used("activations", self.activations, modules)
        return [
            module.register_forward_hook(_Constraint(mesh, spec))
            for name, module in modules.items()
            if (spec := _first(self.activations, name)) is not None
        ]


class _Constraint:
    """Hook that divides a module's output. Left alone: outputs whose rows do not divide, as when sampling."""

    def __init__(self, mesh: "Mesh", spec: Spec) -> None:
        self.mesh = mesh
        self.spec = spec
        self.rows = size(mesh, *_axes(spec[0]))

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        from torch_xla.distributed.spmd import mark_sharding_with_gradients

        if output.shape[0] % self.rows:
            return output
        return mark_sharding_with_gradients(output, self.mesh, self.spec)


def shard(tensor: Tensor, mesh: "Mesh", spec: Spec) -> None:
    """Divide ``tensor``, in place, unless it is divided already."""
    import torch_xla
    from torch_xla.distributed.spmd import mark_sharding

    if not torch_xla._XLAC._get_xla_sharding_spec(tensor):
        mark_sharding(tensor, mesh, spec)


def send_rows(tensor: Tensor, mesh: "Mesh", device: torch.device) -> Tensor:
    """Put the rows of ``tensor`` on the devices along data and fsdp.

    Without an axis ``tensor``, each host brings rows of its own, and the result has those of all hosts; with one, all
    hosts bring the same.
    """
    import torch_xla.core.xla_model as xm
    from torch_xla.distributed.spmd import Mesh, ShardingSpec, mark_sharding

    rest = [None] * (tensor.ndim - 1)
    if size(mesh, "tensor") > 1:
        sent = tensor.to(device)
        mark_sharding(sent, mesh, (BATCH, *rest))
        return sent
    # A mesh of one axis, because a specification by two needs a tensor of two dimensions.
    rows = ShardingSpec(Mesh(mesh.device_ids, (len(mesh.device_ids),), ("rows",)), ("rows", *rest), minibatch=True)
    return xm.send_cpu_data_to_device([tensor], device, rows)[0]


def shard_optimizer(optimizer: Optimizer, specs: dict[Tensor, Spec], mesh: "Mesh") -> None:
    """Divide the state of ``optimizer`` like its parameters. States that lack a dimension (Adafactor) follow the rest."""
    for parameter, state in optimizer.state.items():
        spec, shape = specs[parameter], tuple(parameter.shape)
        parts = {shape: spec}
        if len(shape) > 1:
            parts |= {shape[:-1]: spec[:-1], (*shape[:-2], shape[-1]): (*spec[:-2], spec[-1])}
        for name, value in state.items():
            if not isinstance(value, Tensor) or not value.ndim or value.device.type != "xla":
                continue
            # A square matrix has equal sides: Adafactor's column statistics are told by their name.
            column = len(shape) > 1 and value.ndim == len(shape) - 1 and name.endswith("_col")
            shard(value, mesh, (*spec[:-2], spec[-1]) if column else parts[tuple(value.shape)])


def _read(setting: str, patterns: dict[str, list[Axis]]) -> dict[str, Spec]:
    read: dict[str, Spec] = {}
    for pattern, entries in patterns.items():
        unknown = [axis for entry in entries for axis in _axes(entry) if axis not in AXES]
        if unknown:
            raise ValueError(
                f"sharding.{setting}[{pattern!r}] is {entries}; {unknown[0]!r} is no axis of the mesh: {', '.join(AXES)}"
            )
        read[pattern] = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in entries)
    return read


def _axes(entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _fits(pattern: str, name: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", "[^.]*"), name) is not None


def _first(patterns: dict[str, Spec], name: str) -> Spec | None:
    return next((spec for pattern, spec in patterns.items() if _fits(pattern, name)), None)


def _check_used(setting: str, patterns: dict[str, Spec], names: Iterable[str]) -> None:
    known = [name for name in names if name]
    for pattern in patterns:
        if not any(_fits(pattern, name) for name in known):
            raise ValueError(
                f"sharding.{setting} has a pattern {pattern!r} that no name of the model fits; the names are like "
                f"{known[0]!r} and {known[-1]!r}, and * stands for one part between dots"
            )


def _automatic(shape: tuple[int, ...], devices: int) -> Spec:
    """Divide the largest dimension that can be divided; vectors stay whole, for they are small and everywhere needed."""
    divisible = [i for i, length in enumerate(shape) if length % devices == 0] if len(shape) > 1 else []
    chosen = max(divisible, key=lambda i: shape[i], default=None)
    return tuple("fsdp" if i == chosen else None for i in range(len(shape)))


def _fitted(name: str, shape: tuple[int, ...], spec: Spec, mesh: "Mesh") -> Spec:
    if len(spec) != len(shape):
        raise ValueError(f"sharding.parameters gives {name} {len(spec)} dimensions, but it has {list(shape)}")
    for length, entry in zip(shape, spec, strict=True):
        if length % size(mesh, *_axes(entry)):
            raise ValueError(
                f"sharding.parameters divides {length} of {name} {list(shape)} over {' x '.join(_axes(entry))}, which has "
                f"{size(mesh, *_axes(entry))} devices; choose another dimension, or another mesh"
            )
    return spec


def _check_heads(model: nn.Module, specs: dict[str, Spec], mesh: "Mesh") -> None:
    divided = any("tensor" in _axes(entry) for name, spec in specs.items() if ".self_attn." in name for entry in spec)
    config, devices = getattr(model, "config", None), size(mesh, "tensor")
    if not divided or config is None:
        return
    for setting in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, setting)
        if heads % devices:
            raise ValueError(
                f"trainer.strategy.init_args.mesh has {devices} devices along tensor, which do not divide the model's "
                f"{heads} {setting}; choose a divisor"
            )
