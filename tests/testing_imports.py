"""A fresh interpreter that imports sapa_mm with only some of the frameworks."""

import os
import subprocess
import sys
from pathlib import Path

# Makes top-level packages, or modules such as 'mmcv.ops', impossible to import.
BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if any(name == b or name.startswith(b + '.') for b in {blocked!r}):
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Blocker())
"""

ALL = ('mmengine', 'mmcv', 'mmseg', 'mmdet')


def run(code: str, *blocked: str, path: Path | None = None) -> subprocess.CompletedProcess:
    """Run code after ``import sapa_mm``, with the folder ``path`` in front of all packages."""
    environment = os.environ | ({'PYTHONPATH': str(path)} if path else {})
    code = BLOCK.format(blocked=blocked) + 'import sapa_mm\n' + code
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=environment, timeout=120
    )
