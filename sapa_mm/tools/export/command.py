"""Export a model, or one upsampler alone, to ONNX or to a torch.export program.

  %(prog)s CONFIG CHECKPOINT --out model.onnx
  %(prog)s CONFIG CHECKPOINT --out model.pt2 --size 512 1024
  %(prog)s --upsampler sapa-g --channels 64 --out sapa_g.onnx

CONFIG is a segmentor, a depth estimator or a matting network; without CHECKPOINT its weights are
random. The file takes one input, ``image`` (N, 3, H, W), normalized as is printed, and gives
``logits`` (N, classes, H, W), or ``depth`` (N, 1, H, W) in metres; of matting the image has the
trimap as its fourth channel and gives ``alpha`` (N, 1, H, W). An upsampler takes ``x``
(N, C, H, W) and ``guide`` (N, Cy, Hg, Wg) and gives ``upsampled`` (N, C, Hg, Wg), with the weights
of its initialization. Whole images are computed in float32, without sliding windows.

Height, width and batch are free unless --static fixes them; where a model cannot have a free batch
or sizes that are no multiples of 32, the output says so. The file needs neither this project nor
its operators: in ONNX all are standard ones. It is compared with PyTorch before it is kept; exit
status 1 and no file if it differs.
"""

import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..arguments import output_file, positive
from ..errors import ToolError, reported_by
from ..presets import upsampler_name

SUFFIXES = ('.onnx', '.pt2')
# PyTorch's exporter writes no opset below this one.
MIN_OPSET = 18


def exported_file(text: str) -> Path:
    """Parse the path of a file whose suffix names a format."""
    path = output_file(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(
            f'expected a file that ends in {" or ".join(SUFFIXES)}, got {text}'
        )
    return path


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the options."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('config', nargs='?', metavar='CONFIG', help="the model's config")
    add('checkpoint', nargs='?', type=Path, metavar='CHECKPOINT', help='its weights')
    add('--out', type=exported_file, required=True, metavar='FILE', help='file.onnx or file.pt2')
    add(
        '--size',
        nargs=2,
        type=positive,
        metavar=('H', 'W'),
        help="size of the image (the config's) or of the guide (64 96)",
    )
    add('--static', action='store_true', help='take images of this size alone, one at a time')
    add('--opset', type=positive, metavar='N', help="version of ONNX's operators (the exporter's)")
    add('--upsampler', type=upsampler_name, metavar='NAME', help='export this one alone')
    add(
        '--channels',
        nargs='+',
        type=positive,
        metavar='C',
        help='channels of x and, where they differ, of the guide',
    )
    add(
        '--tolerance',
        type=float,
        default=1e-4,
        metavar='T',
        help='largest difference from PyTorch, of the largest output (%(default)s)',
    )
    return parser


def missing(packages: Iterable[str]) -> list[str]:
    """Return those of the packages that cannot be imported."""
    found = []
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            found.append(package)
    return found


def check_opset(opset: int) -> None:
    """Raise ToolError unless the exporter and onnx know this version."""
    from onnx.defs import onnx_opset_version

    if not MIN_OPSET <= opset <= onnx_opset_version():
        raise ToolError(f'--opset: expected {MIN_OPSET} to {onnx_opset_version()}, got {opset}')


def check_format(out: Path, opset: int | None) -> None:
    """Raise ToolError unless what the file's format needs is installed and --opset fits it."""
    if out.suffix == '.onnx':
        absent = missing(('onnx', 'onnxscript'))
        if absent:
            raise ToolError(
                f'{out.name} needs {" and ".join(absent)}: pip install {" ".join(absent)}'
            )
        if opset:
            check_opset(opset)
    elif opset:
        raise ToolError(f'--opset: expected with an ONNX file alone, got {out.name}')
    import torch

    if not hasattr(torch.export.Dim, 'DYNAMIC'):
        raise ToolError(f'needs torch >= 2.6, got {torch.__version__}: pip install -U torch')


def check(options: argparse.Namespace) -> None:
    """Raise ToolError if the options do not fit each other or a package is missing."""
    if bool(options.config) == bool(options.upsampler):
        got = 'both' if options.config else 'neither'
        raise ToolError(f'expected a CONFIG or --upsampler, got {got}')
    if bool(options.upsampler) != bool(options.channels):
        raise ToolError('--channels: expected together with --upsampler')
    if options.channels and len(options.channels) > 2:
        raise ToolError(f'--channels: expected one or two, got {len(options.channels)}')
    if not options.tolerance >= 0:
        raise ToolError(f'--tolerance: expected 0 or more, got {options.tolerance}')
    if options.checkpoint and not options.checkpoint.is_file():
        raise ToolError(f'CHECKPOINT: no file {str(options.checkpoint)!r}')
    check_format(options.out, options.opset)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Export, verify, print.

    Raises:
        SystemExit: The options are wrong, status 2; or the export failed, status 1.
    """
    warnings.filterwarnings('ignore')  # the frameworks and the exporter warn of themselves
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    with reported_by(parser):
        check(options)
        # It imports torch and a framework, which takes seconds, only when the arguments are right.
        from .subjects import make_upsampler, read_model

        if options.upsampler:
            subject, size = make_upsampler(options.upsampler, options.channels, options.size)
        else:
            subject, size = read_model(options.config, options.checkpoint, options.size)
    from .programs import ExportError, export

    for name in ('torch.onnx', 'torch.fx.experimental.symbolic_shapes', 'onnxscript', 'onnx_ir'):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        lines = export(
            subject,
            size,
            options.out,
            static=options.static,
            opset=options.opset,
            tolerance=options.tolerance,
        )
    except ExportError as error:
        sys.exit(str(error))
    lines = [f'{options.out}: {options.out.stat().st_size:,} bytes', *lines]
    sys.stdout.writelines(f'{line}\n' for line in lines)
