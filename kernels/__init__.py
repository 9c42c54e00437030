"""Triton kernels of the window operators; imports torch and triton alone."""
