#!/usr/bin/env python
"""Train, test and report several upsamplers in one model; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/compare.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('compare'))
