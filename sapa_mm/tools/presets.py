"""The upsamplers that tools know by a name, from configs/_base_/upsamplers."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from .configs import own_configs


def presets() -> Path:
    """The folder with a config for each of them."""
    return own_configs() / '_base_' / 'upsamplers'


def upsampler_names() -> list[str]:
    """All names."""
    names = (path.stem.replace('_', '-') for path in presets().glob('*.py'))
    return sorted(name for name in names if not name.startswith('reconstruction'))


def upsampler_name(text: str) -> str:
    """Parse a name; ``_`` and ``-`` are one."""
    name = text.replace('_', '-')
    if name not in upsampler_names():
        raise argparse.ArgumentTypeError(
            f'expected one of {", ".join(upsampler_names())}, got {text!r}'
        )
    return name


def upsampler_config(name: str, options: Mapping | None = None) -> dict:
    """The config of an upsampler.

    Args:
        name: One of `upsampler_names`.
        options: What differs from it. Default: nothing.
    """
    from mmengine.config import Config

    cfg = Config.fromfile(presets() / f'{name.replace("-", "_")}.py').to_dict()['upsampler']
    return {**cfg, **(options or {})}
