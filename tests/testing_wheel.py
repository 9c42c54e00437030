"""The wheel of the checkout, for tests of what an installed package holds."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build_wheel(folder: Path) -> Path:
    """Build the wheel of a copy of the checkout; its path, in ``folder``."""
    # A copy: what an earlier build left in the checkout must not get in.
    copy = folder / 'checkout'
    left_out = shutil.ignore_patterns(
        *('.git', '.venv*', '.*_cache', 'build', '*.egg-info', '__pycache__', 'data', 'work_dirs')
    )
    shutil.copytree(ROOT, copy, ignore=left_out, symlinks=True)
    command = [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', folder]
    subprocess.run([*command, copy], check=True, capture_output=True, timeout=300)
    (path,) = folder.glob('*.whl')
    return path
