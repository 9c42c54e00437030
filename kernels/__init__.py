"""Triton kernels of the window operators; imports torch and triton alone."""

#: The oldest Triton whose jit functions take tuples.
OLDEST_TRITON = (3, 3)
