"""New-style configs of mmengine, whose types are classes, and the names that stand for those.

Such a config imports its base and its classes (``with read_base(): from .base import *``), and need
not have a ``default_scope``. mmengine imports a class when it is used, and writes its import path
where it dumps the config. The tools read all of that as if the classes were registered names, which
is what the frameworks' own functions compare with.
"""

import functools
import importlib
import importlib.util
import keyword
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..frameworks import INSTALL
from .errors import ToolError

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.registry import Registry

# The frameworks, and the modules here that have their hosts.
HOSTS = {'mmseg': 'sapa_mm.segmentation', 'mmdet': 'sapa_mm.detection'}
# What to install for the framework that a config is of.
FRAMEWORKS = {name: INSTALL[name] for name in HOSTS}


def is_new_style(path: Path) -> bool:
    """Return whether mmengine reads a config as a new-style one."""
    from mmengine.config import Config

    return Config._is_lazy_import(str(path))


def children(node: object) -> Iterator[tuple[Any, Any]]:
    """The keys and values of a dict, or the indices and items of a list or tuple; else nothing.

    A class that mmengine has not imported yet stays so.
    """
    if isinstance(node, dict):
        yield from dict.items(node)
    elif isinstance(node, (list, tuple)):
        yield from enumerate(node)


def find_class(kind: object) -> Any:
    """Return the class, or function, that a ``type`` means.

    Args:
        kind: A class, one that mmengine has not imported yet, or the import path of one.

    Returns:
        The class. None for a registered name, and where the import fails: whoever builds it then
        says why.
    """
    from mmengine.config.lazy import LazyAttr, LazyObject

    try:
        if isinstance(kind, (LazyAttr, LazyObject)):
            return kind.build()
        if isinstance(kind, str):
            module, _, name = kind.rpartition('.')
            return getattr(importlib.import_module(module), name) if module else None
    except Exception:  # it is of any module
        return None
    return kind if callable(kind) else None


def framework_of(cfg: 'Config') -> str | None:
    """Return the framework of a config: its ``default_scope``, or that of the model's classes.

    Args:
        cfg: The config.

    Returns:
        'mmseg', 'mmdet', or whatever else the ``default_scope`` is. None if nothing tells it.
    """
    scope = cfg.get('default_scope')
    if scope is not None:
        return scope
    level = [cfg.get('model')]
    while level:  # the model comes before its parts, which may be of another framework
        for node in level:
            kind = dict.get(node, 'type') if isinstance(node, dict) else None
            found = find_class(kind)
            # A class of the user's own may have a framework's as its base.
            modules = [base.__module__ for base in getattr(found, '__mro__', ())] or [str(kind)]
            for root in (module.partition('.')[0] for module in modules):
                if root in FRAMEWORKS:
                    return root
        level = [child for node in level for _, child in children(node)]
    return None


@functools.cache
def registries(scope: str) -> tuple['Registry', ...]:
    """Return the registries of a framework, without those of mmengine, which are above them."""
    from mmengine.registry import Registry

    found = vars(importlib.import_module(f'{scope}.registry')).values()
    return tuple(r for r in found if isinstance(r, Registry) and r.scope == scope)


def means(registry: 'Registry', name: str, kind: object) -> bool:
    """Return whether a registry, or the first above it with such a name, has ``kind`` under it."""
    level: Registry | None = registry
    while level is not None:
        level.import_from_location()
        if name in level.module_dict:
            return level.module_dict[name] is kind
        level = level.parent
    return False


def registered_name(kind: object, framework: str) -> str | None:
    """Return the name that a config of a framework has for a class, or None without one."""
    found = find_class(kind)
    name = getattr(found, '__name__', None)
    if name is None:
        return None
    for scope in (framework, *FRAMEWORKS):
        if scope == framework or scope in sys.modules:
            if any(means(registry, name, found) for registry in registries(scope)):
                return name if scope == framework else f'{scope}.{name}'
    return None


def use_names(node: Any, framework: str) -> None:
    """Put registered names in the place of classes, in a config or a part of one.

    Args:
        node: A dict, or a list or tuple of dicts, which is changed.
        framework: 'mmseg' or 'mmdet', whose names need no scope.
    """
    for key, value in list(children(node)):
        if key != 'type' or not isinstance(node, dict):
            use_names(value, framework)
        elif name := registered_name(value, framework):
            node[key] = name


def is_importable(names: tuple[str, ...]) -> bool:
    """Return whether these can stand in an import statement."""
    return all(name.isidentifier() and not keyword.iskeyword(name) for name in names)


def base_module(path: Path, folder: Path) -> str:
    """Return what a new-style config imports its base from.

    Args:
        path: The base.
        folder: The config's.

    Returns:
        '.base', '..folder.base' and so on; for a base in an installed package, which may lie where
        no relative import leads, 'package.folder.base'.

    Raises:
        ToolError: A file or folder has a name that cannot be imported.
    """
    path = path.resolve()
    parts = Path(os.path.relpath(path, folder.resolve())).parent.parts + (path.stem,)
    up = parts.count('..')
    if is_importable(parts[up:]):
        return '.' * (up + 1) + '.'.join(parts[up:])
    for entry in map(Path, sys.path):
        if path.is_relative_to(entry.resolve()):
            names = (*path.relative_to(entry.resolve()).parent.parts, path.stem)
            if len(names) > 1 and is_importable(names) and importlib.util.find_spec(names[0]):
                return '.'.join(names)
    raise ToolError(
        f'CONFIG: a new-style config is imported by the one that builds on it, which {path} does '
        'not allow: expected folders and a file whose names are Python names'
    )
