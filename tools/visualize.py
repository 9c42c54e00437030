#!/usr/bin/env python
"""Draw what every upsampler of a trained model does; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/visualize.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('visualize'))
