#!/usr/bin/env python
"""Train and compare the autoencoders on MNIST or Fashion-MNIST; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/reconstruct.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('reconstruct'))
