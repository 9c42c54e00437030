"""What `compare.py` can compare: upsamplers by name, with options or without, and CONFIG itself."""

import argparse
import re
from typing import Any

from ..presets import upsampler_config, upsampler_name

# CONFIG as it is, whatever it upsamples with.
UNCHANGED = 'unchanged'


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """Split a choice into the upsampler's name and its options.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    from mmengine.config import DictAction

    name, *options = text.split(':')
    if wrong := [option for option in options if not re.match(r'\w[\w.]*=.', option)]:
        raise argparse.ArgumentTypeError(
            f'expected NAME:OPTION=VALUE, as sapa-b:kernel_size=3, got {wrong[0]!r} in {text!r}'
        )
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='+', action=DictAction, default={})
    given = parser.parse_args(['--options', *options] if options else []).options
    return upsampler_name(name), given


def choice(text: str) -> str:
    """Parse NAME, NAME:OPTION=VALUE:... or 'unchanged'; ``_`` and ``-`` of a name are one.

    Raises:
        argparse.ArgumentTypeError: It is none of them.
    """
    if text == UNCHANGED:
        return text
    name, _ = _parse(text)
    return ':'.join([name, *text.split(':')[1:]])


def choices(text: str) -> list[str]:
    """Parse several, separated by commas.

    Raises:
        argparse.ArgumentTypeError: One is none, or comes twice.
    """
    found = [choice(part) for part in text.split(',')]
    if len({file_stem(name) for name in found}) < len(found):
        raise argparse.ArgumentTypeError(f'expected every upsampler once, got {text}')
    return found


def chosen_config(name: str) -> dict[str, Any] | None:
    """Return the config of an upsampler that was chosen, or None for that of CONFIG."""
    return None if name == UNCHANGED else upsampler_config(*_parse(name))


def file_stem(name: str) -> str:
    """Return what files and folders of a variant are called: mmengine takes no dot in there."""
    return re.sub(r'[^\w-]+', '-', name)
