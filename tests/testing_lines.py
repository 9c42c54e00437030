"""Where the two lines of OpenMMLab's packages, upstream's and the fork, differ for the tests."""

from pathlib import Path

from mmengine.config import Config

from sapa_mm.frameworks import installed_lines

IS_FORK = installed_lines() == ['onedl']


def for_own_script(config: Path, folder: Path) -> Path:
    """A config as mmseg's own scripts can read it.

    They read ``_base_`` before they import sapa_mm. The fork's mmengine finds no ``mmseg::`` then,
    and gets the config without bases, in ``folder``.
    """
    if not IS_FORK:
        return config
    path = folder / f'whole_{config.name}'
    Config.fromfile(config).dump(path)
    return path
