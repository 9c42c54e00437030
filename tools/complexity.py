#!/usr/bin/env python
"""Count parameters and FLOPs of models and their upsampling steps; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/complexity.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('complexity'))
