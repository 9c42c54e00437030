"""New-style twins of text configs: what is a registered name there is an imported class."""

import importlib
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import Registry


class Reference(str):
    """A name that a config uses without quotes."""

    __repr__ = str.__str__


def find(kind: str, scope: str) -> type | None:
    """The class of a registered name, if it has that name itself."""
    outer, _, name = kind.rpartition('.')
    registries = vars(importlib.import_module(f'{outer or scope}.registry')).values()
    # Those of mmengine, which a framework imports there, know other classes by some names.
    own = (r for r in registries if isinstance(r, Registry) and r.scope == (outer or scope))
    found = (registry.get(name) for registry in own)
    return next((cls for cls in found if cls is not None and cls.__name__ == name), None)


def without_marks(node: object) -> object:
    """A config's dict without what only text configs have: scopes of bases, and custom imports."""
    if isinstance(node, (list, tuple)):
        return type(node)(map(without_marks, node))
    if not isinstance(node, dict):
        return node
    skipped = ('_scope_', 'custom_imports')
    return {key: without_marks(value) for key, value in node.items() if key not in skipped}


def write_new_style(cfg: Config, path: Path) -> Path:
    """Write a config as a new-style one, with None for a ``default_scope`` as mmdet's have.

    mmengine takes a missing one for its own scope, in which what classes of mmdet name in turn is
    not found.
    """
    imports: dict[str, str] = {}

    def convert(node: object) -> object:
        if isinstance(node, (list, tuple)):
            return type(node)(map(convert, node))
        if not isinstance(node, dict):
            return node
        out = {key: convert(value) for key, value in node.items()}
        cls = find(out['type'], cfg.default_scope) if isinstance(out.get('type'), str) else None
        if cls is not None:
            line = f'from {cls.__module__} import {cls.__name__}'
            assert imports.setdefault(cls.__name__, line) == line
            out['type'] = Reference(cls.__name__)
        return out

    items = convert(without_marks(cfg.to_dict())) | {'default_scope': None}
    lines = [*imports.values(), *(f'{key} = {value!r}' for key, value in items.items())]
    path.write_text('\n'.join(lines) + '\n')
    return path
