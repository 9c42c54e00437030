"""``python -m sapa_mm`` is the command ``sapa-mm``."""

import sys

from .tools.cli import main

sys.exit(main())
