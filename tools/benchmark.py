#!/usr/bin/env python
"""Time and check the operators, or whole models; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/benchmark.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('benchmark'))
