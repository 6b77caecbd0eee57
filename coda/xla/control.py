"""Control flow inside a compiled XLA program."""

from collections.abc import Callable, Sequence

import torch_xla
import torch_xla.core.xla_builder as xb
from torch import Tensor


def when(condition: Tensor, function: Callable[..., None], outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """Run ``function(*outputs, *inputs)``, which writes into ``outputs``, only if ``condition`` holds on the device.

    One XLA ``Conditional``: the host does not wait and nothing is compiled anew when the condition changes. Under SPMD
    the condition must be the same on all devices, for example a maximum over the whole batch.

    Args:
        condition: bool scalar.
        function: Written in torch; it may use nothing but its arguments and constants.
        outputs: Tensors that keep their value where the condition does not hold.
        inputs: Tensors that it only reads.
    """
    operands = (*outputs, *inputs)
    branch, order = _lower(function, operands, len(outputs))
    builder = xb.create_builder("when")
    predicate, *parameters = (
        xb.mkparam(builder, i, xb.tensor_shape(tensor)) for i, tensor in enumerate((condition, *operands))
    )
    packed = xb.Op.tuple(parameters)

    def changed(*values: xb.Op) -> xb.Op:
        return xb.Op.call(branch, [values[i] for i in order])

    def kept(*values: xb.Op) -> xb.Op:
        return xb.Op.tuple(list(values[: len(outputs)]))

    branches = (xb.Op.wrap_function(changed), xb.Op.wrap_function(kept))
    computation = predicate.conditional(packed, packed, *branches).build("when")
    results = torch_xla._XLAC._xla_user_computation("xla::when", (condition, *operands), computation)
    for output, result in zip(outputs, results, strict=True):
        output.copy_(result)


def _lower(
    function: Callable[..., None], operands: Sequence[Tensor], outputs: int
) -> tuple["xb.XlaComputation", list[int]]:
    """Trace ``function`` over placeholders; returns its computation and which operand each of its parameters is."""
    placeholders = [xb.create_placeholder_tensor(tensor.shape, tensor.dtype) for tensor in operands]
    written = [tensor.clone() for tensor in placeholders[:outputs]]  # a placeholder written to would be no parameter
    function(*written, *placeholders[outputs:])
    context = torch_xla._XLAC.lowering.LoweringContext("Branch")
    context.set_name_string("branch")
    context.build(written)
    parameters = {context.tensor_parameter_id(tensor): i for i, tensor in enumerate(placeholders)}
    parameters.pop(-1, None)  # those that it does not read
    assert len(parameters) == len(context.device_parameter_id_tensor_mapping()), "the function reads other tensors"
    order = [parameters[i] for i in range(len(parameters))]
    return xb.computation_from_module_proto("branch", context.hlo()), order
