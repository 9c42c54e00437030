"""The Triton backend of the operators whose gradients are made of several kernels.

Each module has the functions of its namesake in `strips`; point affiliation needs none, as
`sapa_mm.kernels.affiliation` has them itself. An import of a module imports Triton.
"""
