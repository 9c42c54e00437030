"""Write a config that is another one with an upsampler in place of interpolation.

  %(prog)s mmseg::segformer/segformer_mit-b1_8xb2-160k_ade20k-512x512.py --upsampler sapa-b -o my.py
  %(prog)s my_detector.py --upsampler sapa-g --options kernel_size=3 embed_dims=64 -o guided.py

CONFIG is a path or the name of a config that a framework installs. The new one has it as its base,
by `_base_` or, of a new-style config, by `read_base`, and changes the types of the hosts, which
upsample features, and nothing else. It is built, with random weights, before it is written.
"""

import argparse
import copy
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..upsamplers import GuidedType, guided_hosts
from .arguments import output_file
from .configs import find_config, read_config, reason
from .errors import ToolError, reported_by
from .new_style import FRAMEWORKS, HOSTS, base_module, children, is_new_style
from .output import write_text
from .presets import upsampler_config, upsampler_name, upsampler_names

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

# The last words of the first line of what is written.
MARK = 'by tools/swap_upsampler.py.'


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
        scope, _, name = str(node.get('type')).rpartition('.')
        hosts = guided_hosts()
        # What has the import path of a class, still, is no class of a framework.
        if scope in ('', *FRAMEWORKS) and (
            name in hosts or name in (host.name for host in hosts.values())
        ):
            yield path, node
    for key, child in children(node):
        yield from find_hosts(child, f'{path}.{key}')


def refused_by(host: dict) -> list[str]:
    """The arguments of a host that the guided one in its place does not take."""
    name = host['type'].rpartition('.')[2]
    refused = guided_hosts().get(name, GuidedType(name, ())).refuses
    return [option for option in refused if option in host]


def guided(host: dict, upsample_cfg: dict) -> dict:
    """What a config says in order that ``host``, of its base, uses an upsampler."""
    scope, dot, name = host['type'].rpartition('.')
    new = guided_hosts().get(name, GuidedType(name, ()))
    override = {
        'type': f'{scope}{dot}{new.name}',
        # Not merged with what the host has, be it an upsampler or arguments of an interpolation.
        'upsample_cfg': {'_delete_': True, **upsample_cfg}
        if host.get('upsample_cfg')
        else upsample_cfg,
    }
    if not refused_by(host):
        return override
    # A key cannot be taken out of a base but by writing anew what it is in.
    kept = {key: value for key, value in host.items() if key not in new.refuses}
    return {'_delete_': True, **kept, **override, 'upsample_cfg': upsample_cfg}


def may_pair(name: str) -> bool:
    """Whether the encoder of a guided host downsamples by its upsamplers."""
    hosts = {host.name: host for host in guided_hosts().values()}
    host = hosts.get(name.rpartition('.')[2])
    return host is not None and host.pairs


def place(overrides: dict, model: dict, path: str, override: dict) -> None:
    """Put ``override`` at ``path`` into what a config changes of its base's ``model``.

    A list is written as a whole, which replaces the base's.
    """
    node: Any = overrides
    base: Any = {'model': model}
    *parents, last = path.split('.')
    for key in parents:
        base = base[int(key)] if isinstance(base, list) else base[key]
        if isinstance(node, list):
            node = node[int(key)]
        else:
            empty: dict | list = copy.deepcopy(base) if isinstance(base, list) else {}
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
        ToolError: The model has no host, or one that does not downsample as the upsampler does.
    """
    model = cfg.to_dict()['model']
    hosts = list(find_hosts(model))
    if not hosts:
        parts = [
            f'{key}: {part["type"]}'
            for key, part in model.items()
            if isinstance(part, dict) and 'type' in part and key != 'data_preprocessor'
        ]
        raise ToolError(
            f'CONFIG: expected a model with one of {", ".join(guided_hosts())}, which upsample '
            f'features; this {model.get("type")} has {", ".join(parts)}'
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
        if upsample_cfg.get('paired') and not may_pair(override['type']):
            raise ToolError(
                f'--upsampler: {path}: {override["type"]} does not downsample, and expected an '
                f'upsampler without paired=True, got {upsample_cfg}'
            )
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


def new_style_text(
    base: str,
    cfg: 'Config',
    custom_imports: dict,
    changes: Sequence[Change],
    options: str,
    note: str,
) -> str:
    """The text of a new-style config file, which changes the dicts of its base in place.

    Args:
        base: What it imports its base from.
        cfg: What was read from there.
        custom_imports: Its own.
        changes: The hosts that it changes.
        options: The upsampler's config, as keyword arguments.
        note: The comment at its head.
    """
    hosts = dict(find_hosts(cfg.to_dict()['model']))
    imports, lines = set(), []
    for change in changes:
        place = ''.join(
            f'[{key}]' if key.isdecimal() else f'[{key!r}]' for key in change.path.split('.')[1:]
        )
        scope, _, name = change.after.rpartition('.')
        if change.after != change.before:
            imports.add(f'from {HOSTS[scope or cfg.default_scope]} import {name}')
            lines.append(f"model{place}['type'] = {name}")
        refused = refused_by(hosts[change.path])
        lines += [f'model{place}.pop({option!r})' for option in refused]
        lines.append(f"model{place}['upsample_cfg'] = dict({options})")
    head = [f'# {note}', 'from mmengine.config import read_base', *sorted(imports)]
    read = ['', 'with read_base():', f'    from {base} import *', '']
    return '\n'.join([*head, *read, f'custom_imports = {custom_imports!r}', *lines, ''])


def base_name(name: str, folder: Path) -> str:
    """What a config in ``folder`` writes for the config ``name``, a path or 'mmseg::...'."""
    return name if '::' in name else os.path.relpath(name, folder)


def build_model(cfg: 'Config') -> 'nn.Module':
    """Build the model of a config, to see that it can be.

    Raises:
        ToolError: It cannot.
    """
    from .complexity.count import build

    try:
        return build(cfg)
    except Exception as error:  # of whatever kind: the model is the user's
        raise ToolError(f'the model cannot be built: {reason(error)}') from error


def swapped(name: str, upsample_cfg: dict, out: Path) -> tuple[str, list[Change]]:
    """The text of a config ``out`` that is the config ``name`` with an upsampler.

    Args:
        name: A path, or ``framework::path``.
        upsample_cfg: Config of the upsampler.
        out: Where it will be, which its ``_base_`` depends on.

    Returns:
        The text, and what it changes.

    Raises:
        ToolError: No such config, or one that cannot be changed.
    """
    from mmengine.config import Config

    cfg, path = read_config(name), find_config(name)
    overrides, changes = swap(cfg, upsample_cfg)
    kind = ', '.join(f'{key}={value!r}' for key, value in upsample_cfg.items())
    note = f'{name} with the upsampler dict({kind}), {MARK}'
    if is_new_style(path):
        base, imports = base_module(path, out.parent), overrides['custom_imports']
        return new_style_text(base, cfg, imports, changes, kind, note), changes
    if Config.fromfile(path, import_custom_modules=False).get('default_scope') is None:
        # A new-style config that mmengine dumped has none, which names need.
        overrides['default_scope'] = cfg.default_scope
    return config_text(base_name(name, out.parent), overrides, note), changes


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        'config',
        metavar='CONFIG',
        help='config of a segmentor, depth estimator, detector or matting network',
    )
    add(
        '--upsampler',
        type=upsampler_name,
        required=True,
        metavar='NAME',
        help=f'one of {", ".join(upsampler_names())}',
    )
    add(
        '--options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help="options of the upsampler that differ from the name's",
    )
    add('-o', '--out', type=output_file, required=True, help='config to write')
    add('--force', action='store_true', help='replace a file that this tool wrote')
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Write the config, and say what it changes."""
    warnings.filterwarnings('ignore', 'pkg_resources', UserWarning)  # mmengine's
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    if options.out.exists():
        own = options.out.read_text(errors='replace').partition('\n')[0].endswith(MARK)
        if not own or options.out.resolve() == Path(options.config).resolve():
            # It may be what the new config builds on.
            parser.error(f'argument --out: {options.out} exists, and is not of this tool alone')
        if not options.force:
            parser.error(f'argument --out: {options.out} exists; --force replaces it')
    if options.out.suffix != '.py':
        parser.error(f'argument --out: expected a file that ends in .py, got {options.out}')
    with reported_by(parser):
        upsample_cfg = upsampler_config(options.upsampler, options.options)
        text, changes = swapped(options.config, upsample_cfg, options.out.absolute())
        added = parameters_added(options.config, text, options.out.absolute().parent)
    write_text(options.out, text)
    for change in changes:
        kept = ' (as it was)' if change.before == change.after else f' -> {change.after}'
        print(f'{change.path}: {change.before}{kept}, upsample_cfg={upsample_cfg}')
    print(f'parameters: {added:+,}')
    print(options.out)


def parameters_added(name: str, text: str, folder: Path) -> int:
    """Build both models and count.

    Args:
        name: The config that is changed.
        text: The changed one.
        folder: Where that belongs.

    Raises:
        ToolError: One cannot be built.
    """
    counts = []
    with tempfile.NamedTemporaryFile('w', suffix='.py', dir=folder) as file:
        file.write(text)
        file.flush()
        for config in (file.name, name):
            model = build_model(read_config(config))
            counts.append(sum(parameter.numel() for parameter in model.parameters()))
    return counts[0] - counts[1]
