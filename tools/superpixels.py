#!/usr/bin/env python
"""Draw superpixels, or curves of their accuracy; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/superpixels.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('superpixels'))
