"""Configs that tools read."""

from typing import TYPE_CHECKING

from _launch import FRAMEWORKS, LaunchError, find_config, package_folder

if TYPE_CHECKING:  # importing it takes a second: not before the arguments are checked
    from mmengine.config import Config


def read_config(name: str) -> 'Config':
    """Read the config of a model.

    Args:
        name: A path, or ``framework::path`` below the configs that the framework installs.

    Raises:
        LaunchError: No such config, a broken one, one without a model or of a framework that is not
            known or not installed.
    """
    from mmengine.config import Config

    path = find_config(name)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # it is Python, and any of it can be wrong
        raise LaunchError(f'CONFIG: {name} cannot be read: {reason(error)}') from error
    if cfg.get('default_scope') not in FRAMEWORKS:
        raise LaunchError(
            f'CONFIG: expected default_scope {" or ".join(map(repr, FRAMEWORKS))} in {name}, got '
            f'{cfg.get("default_scope")!r}'
        )
    package_folder(cfg.default_scope)
    if not cfg.get('model'):
        raise LaunchError(f'CONFIG: expected a model in {name}, got none')
    return cfg


def reason(error: Exception) -> str:
    """An exception's type and the first line of its message; of a failed import all of it."""
    message = str(error).strip()
    if not isinstance(error, ImportError):
        message = message.partition('\n')[0]
    return ': '.join(filter(None, [type(error).__name__, message]))
