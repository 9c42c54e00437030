#!/usr/bin/env python
"""Evaluate a checkpoint by the framework's own script; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/test.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('test', prog='tools/test.py'))
