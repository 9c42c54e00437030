#!/usr/bin/env python
"""Make a small data set in which boundaries matter; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/make_toy_dataset.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('toy-data'))
