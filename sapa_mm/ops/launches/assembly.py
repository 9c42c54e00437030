"""The kernels do an assembly; the gradient of its weights is a similarity.

The arguments are those of `sapa_mm.ops.strips.assembly`, of a dtype that the kernels take.
"""

from torch import Tensor

from ...kernels import assembly, similarity


def forward(weights: Tensor, value: Tensor, out: Tensor, kernel_size: int, groups: int) -> None:
    """Write the weighted sums of ``value`` over windows."""
    assembly.forward(weights, value, out, kernel_size, groups)


def backward(
    grad: Tensor,
    weights: Tensor,
    value: Tensor,
    grad_weights: Tensor | None,
    grad_value: Tensor | None,
    kernel_size: int,
    groups: int,
) -> None:
    """Write the gradients that are asked for."""
    if grad_weights is not None:
        similarity.forward(grad, value, grad_weights, kernel_size, groups)
    if grad_value is not None:
        assembly.backward(weights, grad, grad_value, kernel_size, groups)
