"""Put an upsampler into the config of a model that has none."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from _configs import read_config, reason
from _launch import LaunchError

if TYPE_CHECKING:  # importing it takes a second: not before the arguments are checked
    from mmengine.config import Config
    from torch import nn

# What upsamples, and what does it with an upsampler of choice.
HOSTS = {
    'SegformerHead': 'GuidedSegformerHead',
    'FPNHead': 'GuidedFPNHead',
    'UPerHead': 'GuidedUPerHead',
    'FPN': 'GuidedFPN',
    'PAFPN': 'GuidedPAFPN',
    'PixelDecoder': 'GuidedPixelDecoder',
    'TransformerEncoderPixelDecoder': 'GuidedTransformerEncoderPixelDecoder',
    'MSDeformAttnPixelDecoder': 'GuidedMSDeformAttnPixelDecoder',
}
# At the head of what is written.
MARK = 'by tools/swap_upsampler.py.'
# Of a stock host that the guided one has no use for.
REFUSED = {'SegformerHead': 'interpolate_mode'}


class Change(NamedTuple):
    """A host that was changed.

    Attributes:
        path: Where it is in the config, 'model.neck'.
        before: Its type.
        after: Its new type.
    """

    path: str
    before: str
    after: str


def find_hosts(node: object, path: str = 'model') -> Iterator[tuple[str, dict]]:
    """Every dict below ``node`` whose type upsamples, and where it is."""
    if isinstance(node, dict):
        kind = node.get('type')
        name = kind.rpartition('.')[2] if isinstance(kind, str) else ''
        if name in HOSTS or name in HOSTS.values():
            yield path, node
        children = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return
    for key, child in children:
        yield from find_hosts(child, f'{path}.{key}')


def guided(host: dict, upsample_cfg: dict) -> dict:
    """What a config says in order that ``host``, of its base, uses an upsampler."""
    scope, dot, name = host['type'].rpartition('.')
    override = {
        'type': f'{scope}{dot}{HOSTS.get(name, name)}',
        # Not merged with what the host has, be it an upsampler or arguments of an interpolation.
        'upsample_cfg': {'_delete_': True, **upsample_cfg}
        if host.get('upsample_cfg')
        else upsample_cfg,
    }
    refused = REFUSED.get(name)
    if refused not in host:
        return override
    # A key cannot be taken out of a base but by writing anew what it is in.
    kept = {key: value for key, value in host.items() if key != refused}
    return {'_delete_': True, **kept, **override, 'upsample_cfg': upsample_cfg}


def place(overrides: dict, model: dict, path: str, override: dict) -> None:
    """Put ``override`` at ``path`` into what a config changes of its base's ``model``.

    A list is written as a whole, which replaces the base's.
    """
    node, base = overrides, {'model': model}
    *parents, last = path.split('.')
    for key in parents:
        base = base[int(key)] if isinstance(base, list) else base[key]
        if isinstance(node, list):
            node = node[int(key)]
        else:
            empty = copy.deepcopy(base) if isinstance(base, list) else {}
            node = node.setdefault(key, empty)
    if isinstance(node, list):
        node[int(last)] = {**node[int(last)], **override}
        return
    node[last] = {**override, **node.get(last, {})}


def swap(cfg: 'Config', upsample_cfg: dict) -> tuple[dict, list[Change]]:
    """What a config changes of its base in order that the model uses an upsampler.

    Args:
        cfg: The base.
        upsample_cfg: Config of the upsampler.

    Returns:
        The changes as a config holds them, and the hosts that they concern.

    Raises:
        LaunchError: The model has no host.
    """
    model = cfg.to_dict()['model']
    hosts = list(find_hosts(model))
    if not hosts:
        parts = [
            f'{key}: {part["type"]}'
            for key, part in model.items()
            if isinstance(part, dict) and 'type' in part and key != 'data_preprocessor'
        ]
        raise LaunchError(
            f'CONFIG: expected a model with one of {", ".join(HOSTS)}, which upsample features; '
            f'this {model.get("type")} has {", ".join(parts)}'
        )
    imports = cfg.get('custom_imports') or {}
    names = imports.get('imports', [])
    names = [names] if isinstance(names, str) else list(names)
    overrides: dict = {
        'custom_imports': {
            'imports': [*names, *(['sapa_mm'] if 'sapa_mm' not in names else [])],
            'allow_failed_imports': imports.get('allow_failed_imports', False),
        }
    }
    changes = []
    for path, host in hosts:
        override = guided(host, upsample_cfg)
        place(overrides, model, path, override)
        changes.append(Change(path, host['type'], override['type']))
    return overrides, changes


def config_text(base: str, overrides: dict, note: str) -> str:
    """The text of a config file.

    Args:
        base: Its ``_base_``.
        overrides: What it changes.
        note: The comment at its head.
    """
    from mmengine.config import Config

    return f'# {note}\n_base_ = {base!r}\n\n{Config(overrides).pretty_text}'


def base_name(name: str, folder: Path) -> str:
    """What a config in ``folder`` writes for the config ``name``, a path or 'mmseg::...'."""
    return name if '::' in name else os.path.relpath(name, folder)


def build_model(cfg: 'Config') -> 'nn.Module':
    """Build the model of a config, to see that it can be.

    Raises:
        LaunchError: It cannot.
    """
    from _complexity_count import build

    try:
        return build(cfg)
    except Exception as error:  # of whatever kind: the model is the user's
        raise LaunchError(f'the model cannot be built: {reason(error)}') from error


def swapped(name: str, upsample_cfg: dict, out: Path) -> tuple[str, list[Change]]:
    """The text of a config ``out`` that is the config ``name`` with an upsampler.

    Args:
        name: A path, or ``framework::path``.
        upsample_cfg: Config of the upsampler.
        out: Where it will be, which its ``_base_`` depends on.

    Returns:
        The text, and what it changes.

    Raises:
        LaunchError: No such config, or one that cannot be changed.
    """
    overrides, changes = swap(read_config(name), upsample_cfg)
    kind = ', '.join(f'{key}={value!r}' for key, value in upsample_cfg.items())
    note = f'{name} with the upsampler dict({kind}), {MARK}'
    return config_text(base_name(name, out.parent), overrides, note), changes
