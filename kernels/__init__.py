"""Triton kernels of the window operators; imports torch and triton alone."""

#: Major and minor number of the oldest Triton that the kernels run with: as arguments they take
#: named tuples.
OLDEST_TRITON = (3, 3)
