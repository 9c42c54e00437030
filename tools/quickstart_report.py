#!/usr/bin/env python
"""Compare trained segmentors by a table and a picture; see --help."""

import sys

try:
    from sapa_mm.tools.cli import run
except ModuleNotFoundError as error:
    sys.exit(f'tools/quickstart_report.py: {error}; in the checkout: pip install -e .')

if __name__ == '__main__':
    sys.exit(run('quickstart-report'))
