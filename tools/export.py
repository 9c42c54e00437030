#!/usr/bin/env python
"""Write a segmentor or an upsampler to ONNX or torch.export; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/export.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('export'))
