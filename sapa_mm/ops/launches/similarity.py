"""The kernels do a local similarity; its gradients are assemblies.

The arguments are those of `sapa_mm.ops.strips.similarity`, of a dtype that the kernels take.
"""

from torch import Tensor

from ...kernels import assembly, similarity


def forward(query: Tensor, key: Tensor, out: Tensor, kernel_size: int, temperature: float) -> None:
    """Write the inner products of pixels and windows, divided by ``temperature``."""
    similarity.forward(query, key, out, kernel_size, factor=1 / temperature)


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    grad_query: Tensor | None,
    grad_key: Tensor | None,
    kernel_size: int,
    temperature: float,
) -> None:
    """Write the gradients that are asked for."""
    factor = 1 / temperature
    if grad_query is not None:
        assembly.forward(grad, key, grad_query, kernel_size, factor=factor)
    if grad_key is not None:
        assembly.backward(grad, query, grad_key, kernel_size, factor=factor)
