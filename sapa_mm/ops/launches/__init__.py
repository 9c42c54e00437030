"""The Triton backend runs the operators whose gradients take several kernels through this package.

Each module has the functions of its namesake in `strips`; point affiliation needs none, as
`sapa_mm.kernels.affiliation` has them itself. To import a module imports Triton.
"""
