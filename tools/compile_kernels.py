#!/usr/bin/env python
"""Compile the Triton kernels for GPUs that need not be there; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/compile_kernels.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('compile-kernels'))
