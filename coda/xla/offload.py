"""What scanned layers keep between forward and backward pass: their inputs on the device, and named results on the host.

The compiler moves them; it is told by the calls that torch_xla has for it. The devices of a CPU do not know those.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.hooks import RemovableHandle

SETTING = "trainer.strategy.init_args.offload"
INPUT = "input"  # the name of the hidden states that enter a layer; all others are those of modules in it


@torch.library.custom_op("coda::mark", mutates_args=())
def mark(tensor: Tensor, called: str) -> Tensor:
    """``tensor``, with a name that survives tracing."""
    return tensor.clone()


@mark.register_fake
def _(tensor: Tensor, called: str) -> Tensor:
    return torch.empty_like(tensor)


def _gradient(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return gradient, None


mark.register_autograd(_gradient)


def check_offload(names: Sequence[str], scanned: bool) -> None:
    """Raise ValueError where nothing can be kept on the host: without a loop over the layers, or without a TPU."""
    import torch_xla.runtime as xr

    if names and not scanned:
        raise ValueError(f"{SETTING} is {list(names)}, but scan_layers is false; set it to true, or leave offload out")
    if names and xr.device_type() != "TPU":
        raise ValueError(
            f"{SETTING} is {list(names)}, but PJRT_DEVICE is {xr.device_type()}, whose devices have no memory besides that "
            "of the host; leave it out"
        )


def name_results(layer: nn.Module, names: Sequence[str]) -> list[RemovableHandle]:
    """Have modules of ``layer`` name what they return.

    Raises:
        ValueError: If there is no such module, or one is named twice.
    """
    modules = {path: module for path, module in layer.named_modules() if path}
    for entry in names:
        if (entry != INPUT and entry not in modules) or names.count(entry) > 1:
            raise ValueError(
                f"{SETTING} has {entry!r}, which is no part of a layer or is there twice; choose among {INPUT}, "
                f"{', '.join(modules)}"
            )
    return [modules[entry].register_forward_hook(_Naming(entry)) for entry in names if entry != INPUT]


class _Naming:
    def __init__(self, called: str) -> None:
        self.called = called

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # attention: its result, and its weights or None
            return mark(output[0], self.called), *output[1:]
        return mark(output, self.called)


def keep_named(joint: fx.GraphModule, inputs: Any, **options: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Divide a layer into forward and backward such that only its inputs are kept in between, and named results.

    Those are kept on the host; what can be computed from either is computed again. A partition function of AOTAutograd.
    """
    for node in joint.graph.nodes:
        if node.op == "call_function":
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE if _marked(node) else CheckpointPolicy.MUST_RECOMPUTE
            node.meta["ac_graph_id"] = 0
    forward, backward = min_cut_rematerialization_partition(joint, inputs, **options)
    names = {node.name for node in forward.graph.nodes if _marked(node)}
    if names:
        import torch_xla.experimental.stablehlo_custom_call  # noqa: F401  (defines xla::place_to_host and its like)

        _send(forward, names)
        _fetch(backward, names)
    return forward, backward


def _marked(node: fx.Node) -> bool:
    return node.target is torch.ops.coda.mark.default


def _send(forward: fx.GraphModule, names: set[str]) -> None:
    """Put those outputs of ``forward`` that are called so on the host."""
    (output,) = (node for node in forward.graph.nodes if node.op == "output")
    with forward.graph.inserting_before(output):
        for node in [node for node in output.all_input_nodes if node.name in names]:
            output.replace_input_with(node, forward.graph.call_function(torch.ops.xla.place_to_host.default, (node,)))
    forward.recompile()


def _fetch(backward: fx.GraphModule, names: set[str]) -> None:
    """Put those inputs of ``backward`` that are called so back on the device."""
    for node in [node for node in backward.graph.nodes if node.op == "placeholder" and node.name in names]:
        users = list(node.users)
        with backward.graph.inserting_after(node):
            fetched = backward.graph.call_function(torch.ops.xla.place_to_device.default, (node,))
        for user in users:
            user.replace_input_with(node, fetched)
    backward.recompile()
