"""The command ``sapa-mm``: every tool by its name."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..frameworks import INSTALL, MissingFrameworkError
from ..version import __version__
from .errors import ToolError

# What to install for the packages that tools import, by the name that is imported.
PACKAGES = {
    **INSTALL,
    'PIL': 'pillow',
    'markdown_it': 'rich',
    'matplotlib': 'matplotlib',
    'rich': 'rich',
    'skimage': 'scikit-image',
    'triton': 'triton',
}


class Tool(NamedTuple):
    """A tool.

    Attributes:
        target: Its function, as ``module:function`` in this package.
        summary: What it does, in one line.
    """

    target: str
    summary: str


TOOLS = {
    'train': Tool('launch:train', 'train by the train script of mmsegmentation or mmdetection'),
    'test': Tool('launch:test', 'evaluate a checkpoint by their test script'),
    'compare': Tool('compare:main', 'train, test and report several upsamplers in one model'),
    'swap': Tool('swap:main', 'write a config that is another one with an upsampler'),
    'visualize': Tool('visualize:main', 'draw what every upsampler of a trained model does'),
    'superpixels': Tool('superpixels:main', 'draw superpixels, or curves of their accuracy'),
    'matte': Tool('matte:main', 'cut a foreground out of an image, given its trimap'),
    'export': Tool('export:main', 'write a model or an upsampler to ONNX or torch.export'),
    'complexity': Tool('complexity:main', 'count parameters and FLOPs, and those of every step'),
    'benchmark': Tool('benchmark:main', 'time and check the operators, or whole models'),
    'toy-data': Tool('toy_dataset:main', 'make a small data set in which boundaries matter'),
    'compose': Tool('compose:main', 'merge foregrounds and backgrounds to test matting on'),
    'prepare-camvid': Tool('prepare_camvid:main', 'lay CamVid out as the configs expect it'),
    'reconstruct': Tool('reconstruct:main', 'train and compare the autoencoders on MNIST'),
    'quickstart-report': Tool('quickstart_report:main', 'compare runs by a table and a picture'),
    'compile-kernels': Tool('compile_kernels:main', 'compile the Triton kernels for absent GPUs'),
    'info': Tool('info:main', 'print versions, devices and what works: for bug reports'),
}


def run(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run a tool.

    Args:
        name: Its name in `TOOLS`.
        argv: Its arguments. Default: those of this process.
        prog: What the user calls it, for its help and messages. Default: this process's script.

    Returns:
        Exit status: 2 for a user's mistake or a missing package, which is told without a
        traceback.

    Raises:
        SystemExit: As argparse raises it.
    """
    module, _, function = TOOLS[name].target.partition(':')
    try:
        tool = getattr(importlib.import_module(f'.{module}', __package__), function)
        return tool(argv, prog) or 0
    except (ToolError, MissingFrameworkError) as error:
        message = str(error)
    except ModuleNotFoundError as error:
        package = error.name or ''
        # Anything else, such as a mistyped import in a user's own module, is told in full.
        if package not in PACKAGES or importlib.util.find_spec(package) is not None:
            raise
        message = f'{package} is not installed: pip install {PACKAGES[package]}'
    prog = prog or Path(sys.argv[0]).name
    print(f'{prog}: error: {message}\nSee {prog} --help.', file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool that the first argument names, with the others.

    Returns:
        Exit status.
    """
    width = max(map(len, TOOLS))
    listed = '\n'.join(f'  {name:{width}}  {tool.summary}' for name, tool in TOOLS.items())
    parser = argparse.ArgumentParser(
        'sapa-mm',
        usage='%(prog)s TOOL ...',
        description='Guided upsampling for mmsegmentation and mmdetection.',
        epilog=f'tools:\n{listed}\n\n%(prog)s TOOL --help says what a tool takes.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('tool', metavar='TOOL', choices=list(TOOLS), help='one of those below')
    parser.add_argument('--version', action='version', version=f'sapa_mm {__version__}')
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    name = parser.parse_args(arguments[:1]).tool
    return run(name, arguments[1:], f'sapa-mm {name}')
