#!/usr/bin/env python
"""Merge foregrounds and backgrounds to a test set of matting; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/compose_matting.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('compose'))
