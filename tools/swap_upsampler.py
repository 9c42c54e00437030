#!/usr/bin/env python
"""Write a config that is another one with an upsampler; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/swap_upsampler.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('swap'))
