#!/usr/bin/env python
"""Train by the framework's own script; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/train.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('train', prog='tools/train.py'))
