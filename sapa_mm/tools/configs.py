"""Configs that tools read, and where packages keep theirs."""

import difflib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ToolError
from .new_style import FRAMEWORKS, framework_of, use_names

if TYPE_CHECKING:
    from mmengine.config import Config

# Packages that install configs, which a name such as 'mmseg::...' refers to.
CONFIG_PACKAGES = (*FRAMEWORKS, 'sapa_mm')


def package_folder(package: str) -> Path:
    """Return the folder of an installed package, which is not imported.

    Args:
        package: One of `CONFIG_PACKAGES`.

    Raises:
        ToolError: If the package is not installed; the message gives the command.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ToolError(
            f'the config needs {package}, which is not installed: '
            f'pip install {FRAMEWORKS[package]} (the README has the versions that go together)'
        )
    return Path(next(iter(spec.submodule_search_locations)))


def packaged_folders(package: str, name: str) -> list[Path]:
    """Return where a package keeps its ``name`` ('tools' or 'configs'), existing folders only.

    Wheels carry it under ``.mim``; a checkout installed for development has it beside the package.
    """
    folder = package_folder(package)
    return [path for path in (folder / '.mim' / name, folder.parent / name) if path.is_dir()]


def own_folder(name: str) -> Path:
    """Return this project's folder ``name`` ('configs' or 'tools'), in a checkout or installed.

    Raises:
        ToolError: The installation has none.
    """
    folders = packaged_folders('sapa_mm', name)
    if not folders:
        raise ToolError(
            f'sapa_mm in {package_folder("sapa_mm")} came without its {name}: install it anew, '
            'from a checkout whose sapa_mm/.mim holds links'
        )
    return folders[0]


def own_configs() -> Path:
    """Return the folder of this project's configs; see `own_folder`."""
    return own_folder('configs')


def own_script(tool: str) -> Path:
    """Return a script of this project's tools folder, such as 'train', for another process."""
    return own_folder('tools') / f'{tool}.py'


def find_config(name: str) -> Path:
    """Return the path of a config.

    Args:
        name: A path, or ``package::path`` below the configs that mmseg, mmdet or sapa_mm installs.

    Raises:
        ToolError: If there is no such file.
    """
    package, separator, inner = name.partition('::')
    if not separator:
        if not Path(name).is_file():
            raise ToolError(f'CONFIG: no file {name!r}')
        return Path(name)
    if package not in CONFIG_PACKAGES:
        listed = ', '.join(CONFIG_PACKAGES)
        raise ToolError(f'CONFIG: expected one of {listed} before "::", got {name!r}')
    inner = inner if inner.endswith('.py') else f'{inner}.py'
    folders = packaged_folders(package, 'configs')
    for folder in folders:
        if (folder / inner).is_file():
            return folder / inner
    known = [path.relative_to(f).as_posix() for f in folders for path in f.glob('*/*.py')]
    close = difflib.get_close_matches(inner, known, n=3)
    hint = f'; close to it: {", ".join(close)}' if close else ''
    raise ToolError(f'CONFIG: {package} installs no config {inner!r}{hint}')


def read_config(name: str) -> 'Config':
    """Read the config of a model.

    Args:
        name: A path, or ``package::path`` below the configs that mmseg, mmdet or sapa_mm installs.

    Returns:
        The config. One whose types are classes has their names instead, and its framework for a
        ``default_scope``, where it has none.

    Raises:
        ToolError: No such config, a broken one, one without a model or of a framework that is not
            known or not installed.
    """
    from mmengine.config import Config

    path = find_config(name)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # it is Python, and any of it can be wrong
        raise ToolError(f'CONFIG: {name} cannot be read: {reason(error)}') from error
    framework = framework_of(cfg)
    if framework not in FRAMEWORKS:
        raise ToolError(
            f'CONFIG: expected default_scope {" or ".join(map(repr, FRAMEWORKS))} in {name}, or a '
            f'model of their classes, got {framework!r}'
        )
    package_folder(framework)
    if not cfg.get('model'):
        raise ToolError(f'CONFIG: expected a model in {name}, got none')
    cfg.default_scope = framework
    use_names(cfg._cfg_dict, framework)
    return cfg


def type_name(cfg: Mapping) -> str:
    """The name of a config's ``type``, be it a class or a string with a scope; '' without one."""
    kind = cfg.get('type', '')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2]


def is_depth(cfg: Mapping) -> bool:
    """Tell whether a config is of a depth estimator."""
    return type_name(cfg['model']) == 'DepthEstimator'


def is_matting(cfg: Mapping) -> bool:
    """Tell whether a config is of a matting network, which needs a trimap of every image."""
    return type_name(cfg['model']) == 'GuidedMattingNet'


def reason(error: Exception) -> str:
    """An exception's type and the first line of its message; of a failed import all of it."""
    message = str(error).strip()
    if not isinstance(error, ImportError):
        message = message.partition('\n')[0]
    return ': '.join(filter(None, [type(error).__name__, message]))
