#!/usr/bin/env python
"""Write a config that is another one with an upsampler in place of interpolation.

  %(prog)s mmseg::segformer/segformer_mit-b1_8xb2-160k_ade20k-512x512.py --upsampler sapa-b -o my.py
  %(prog)s my_detector.py --upsampler sapa-g --options kernel_size=3 embed_dims=64 -o guided.py

CONFIG is a path or the name of a config that a framework installs. The new one has it as its base
and changes the types of the hosts, which upsample features, and nothing else. It is built, with
random weights, before it is written.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from _launch import LaunchError
from _output import output_file, write_atomically
from _swap import MARK, build_model, swapped
from _upsamplers import upsampler_config, upsampler_name, upsampler_names


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    parser.description = __doc__ % {'prog': parser.prog}
    add('config', metavar='CONFIG', help='config of a segmentor or a detector')
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


def main(argv: Sequence[str] | None = None) -> None:
    """Write the config, and say what it changes."""
    warnings.filterwarnings('ignore', 'pkg_resources', UserWarning)  # mmengine's
    parser = make_parser()
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
    try:
        upsample_cfg = upsampler_config(options.upsampler, options.options)
        text, changes = swapped(options.config, upsample_cfg, options.out.absolute())
        added = parameters_added(options.config, text, options.out.absolute().parent)
    except LaunchError as error:
        parser.error(str(error))
    write_atomically(options.out, lambda part: part.write_text(text))
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
        LaunchError: One cannot be built.
    """
    from _configs import read_config

    counts = []
    with tempfile.NamedTemporaryFile('w', suffix='.py', dir=folder) as file:
        file.write(text)
        file.flush()
        for config in (file.name, name):
            model = build_model(read_config(config))
            counts.append(sum(parameter.numel() for parameter in model.parameters()))
    return counts[0] - counts[1]


if __name__ == '__main__':
    sys.exit(main())
