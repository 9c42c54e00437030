#!/usr/bin/env python
"""Cut a foreground out of an image, given its trimap; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/matte.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('matte'))
