#!/usr/bin/env python
"""Lay CamVid out as the configs expect it; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/prepare_camvid.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('prepare-camvid'))
