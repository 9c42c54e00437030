"""Export a segmentor, or one upsampler alone, to ONNX or to a program of torch.export.

  %(prog)s CONFIG CHECKPOINT --out model.onnx
  %(prog)s CONFIG CHECKPOINT --out model.pt2 --size 512 1024
  %(prog)s --upsampler sapa-g --channels 64 --out sapa_g.onnx

CONFIG is a segmentor of mmsegmentation; without CHECKPOINT its weights are random. The file takes
one input, ``image`` (N, 3, H, W), normalized as is printed, and gives ``logits``
(N, classes, H, W). An upsampler takes ``x`` (N, C, H, W) and ``guide`` (N, Cy, Hg, Wg) and gives
``upsampled`` (N, C, Hg, Wg), with the weights of its initialization. Whole images are computed in
float32, without sliding windows.

Height, width and batch are free unless --static fixes them; where a model cannot have a free batch
or sizes that are no multiples of 32, the output says so. The file needs neither this project nor
its operators: in ONNX all are standard ones. It is compared with PyTorch before it is kept; exit
status 1 and no file if it differs.
"""

import argparse
import importlib
import inspect
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .arguments import output_file, positive
from .complexity.command import read_job, size_text
from .configs import read_config, reason
from .errors import ToolError
from .output import write_atomically
from .presets import upsampler_config, upsampler_name

if TYPE_CHECKING:  # importing them takes seconds: not before the arguments are checked
    import torch
    from mmengine.config import Config
    from torch import Tensor, nn

SUFFIXES = ('.onnx', '.pt2')
# What sizes are multiples of where a model cannot have any.
MULTIPLE = 32
# The first that PyTorch's exporter writes.
MIN_OPSET = 18
UPSAMPLER_SIZE = (64, 96)  # of the guide


class Subject(NamedTuple):
    """What is exported.

    Attributes:
        name: As the user gave it.
        model: The module, in evaluation mode.
        inputs: Names of its inputs.
        output: Name of its output.
        make: (batch, height, width) to inputs.
        notes: Lines for whoever feeds the file.
    """

    name: str
    model: 'nn.Module'
    inputs: tuple[str, ...]
    output: str
    make: Callable[[int, int, int], tuple['Tensor', ...]]
    notes: tuple[str, ...] = ()


def exported_file(text: str) -> Path:
    """Parse the path of a file whose suffix names a format."""
    path = output_file(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(
            f'expected a file that ends in {" or ".join(SUFFIXES)}, got {text}'
        )
    return path


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('config', nargs='?', metavar='CONFIG', help="the segmentor's config")
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
    """Those of the packages that cannot be imported."""
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
    if options.out.suffix == '.onnx':
        absent = missing(('onnx', 'onnxscript'))
        if absent:
            raise ToolError(
                f'{options.out.name} needs {" and ".join(absent)}: pip install {" ".join(absent)}'
            )
        if options.opset:
            check_opset(options.opset)
    elif options.opset:
        raise ToolError(f'--opset: expected with an ONNX file alone, got {options.out.name}')
    import torch

    if not hasattr(torch.export.Dim, 'DYNAMIC'):
        raise ToolError(f'needs torch >= 2.6, got {torch.__version__}: pip install -U torch')


def preprocessing(cfg: 'Config') -> tuple[str, ...]:
    """How a model's images are prepared, in words."""
    options = cfg.model.get('data_preprocessor') or {}
    mean, std = options.get('mean'), options.get('std')
    order = 'RGB' if options.get('bgr_to_rgb') else 'BGR'
    if options.get('rgb_to_bgr'):
        order = 'as the images are read, with the channels turned round'
    values = f'({order} of 0 to 255 - mean {mean}) / std {std}' if mean else f'{order} of 0 to 255'
    return (f'image: float32 (N, 3, H, W), {values}',)


def read_segmentor(config: str, checkpoint: Path | None, size: Sequence[int] | None):
    """Build the segmentor of a config.

    Returns:
        The subject, and the size of its images.

    Raises:
        ToolError: A config that is no segmentor's, or weights that do not fit it.
    """
    cfg = read_config(config)
    if cfg.default_scope != 'mmseg':
        raise ToolError(
            f'CONFIG: expected a segmentor of mmsegmentation, or --upsampler, got a model of '
            f'{cfg.default_scope}, {cfg.model.get("type")}; detectors are not exported'
        )
    job = read_job(config, size)
    import torch
    from mmengine.registry import init_default_scope
    from mmengine.runner import load_checkpoint
    from mmseg.registry import MODELS
    from torch import nn

    import sapa_mm  # noqa: F401  registers what the config names

    init_default_scope('mmseg')
    cfg = job.cfg.model
    for part in (cfg, cfg.get('backbone') or {}):  # nothing is downloaded
        part.pop('pretrained', None)
        part.pop('init_cfg', None)
    try:
        model = MODELS.build(cfg)
        if checkpoint is None:
            model.init_weights()
        else:
            load_checkpoint(model, str(checkpoint), map_location='cpu', strict=True)
    except Exception as error:  # of whatever kind: model and weights are the user's
        raise ToolError(f'{checkpoint or config} cannot be loaded: {reason(error)}') from error
    if not hasattr(model, 'encode_decode'):
        raise ToolError(
            f'CONFIG: expected a segmentor with encode_decode, got {type(model).__name__}'
        )

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image: 'Tensor') -> 'Tensor':
            # An own field: `torch.Size` would be taken for a window's.
            size = tuple(image.shape[2:])
            return self.model.encode_decode(image, [dict(img_shape=size, ori_shape=size)])

    channels = cfg.get('backbone', {}).get('in_channels', 3)
    subject = Subject(
        config,
        Logits().eval(),
        ('image',),
        'logits',
        lambda batch, h, w: (torch.randn(batch, channels, h, w),),
        preprocessing(job.cfg),
    )
    return subject, job.size


def make_upsampler(name: str, channels: Sequence[int]) -> Subject:
    """Build the upsampler of a preset."""
    import torch

    import sapa_mm  # noqa: F401
    from sapa_mm.upsamplers import build_upsampler

    torch.manual_seed(0)
    try:
        model = build_upsampler(upsampler_config(name), *channels)
    except (ImportError, TypeError, ValueError) as error:
        raise ToolError(f'--channels: {error}') from error
    low, high = channels[0], channels[-1]

    def make(batch: int, height: int, width: int) -> tuple['Tensor', 'Tensor']:
        x = torch.randn(batch, low, -(-height // 2), -(-width // 2))
        return x, torch.randn(batch, high, height, width)

    return Subject(name, model.eval(), ('x', 'guide'), 'upsampled', make)


def multiple_above(value: int) -> int:
    """The smallest multiple that is larger than ``value``."""
    return (value // MULTIPLE + 1) * MULTIPLE


def attempts(size: Sequence[int], static: bool):
    """What to try in turn.

    Yields:
        What is free, in words; the inputs' (batch, height, width) while tracing; the free
        dimensions of an input; and (batch, height, width) to verify at.
    """
    import torch

    given = (1, *size)
    if static:
        yield 'nothing: one image of the given size', given, {}, [given]
        return
    free = torch.export.Dim.DYNAMIC
    # Sizes that differ and that nothing divides, so that no two are taken for one.
    odd = [multiple_above(n) + 1 for n in size]
    if odd[0] == odd[1]:
        odd[1] += MULTIPLE
    other = (
        [n - 2 * (MULTIPLE - 3) for n in odd] if min(odd) > 4 * MULTIPLE else [n + 6 for n in odd]
    )
    sides = {2: free, 3: free}
    yield 'batch, height and width', (2, *odd), {0: free, **sides}, [given, (3, *other)]
    yield 'height and width', (1, *odd), sides, [given, (1, *other)]
    steps = {axis: MULTIPLE * torch.export.Dim(name) for axis, name in ((2, 'h'), (3, 'w'))}
    even = [n - 1 for n in odd]
    given = (1, *(-(-n // MULTIPLE) * MULTIPLE for n in size))
    larger = (1, even[0] + MULTIPLE, even[1])
    what = f'height and width, in multiples of {MULTIPLE}'
    yield what, (1, *even), steps, [given, larger]


def forget_coincidences(program: 'torch.export.ExportedProgram') -> None:
    """Drop what a program asserts of sizes that are not equal.

    The tracer asks it of every slice, to know how it lies in memory, and takes the example's answer
    for a condition. Where one size must be at least another that stays.
    """
    import torch

    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            condition = node.args[0]
            if getattr(condition, 'target', None) is torch.sym_not:
                graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def trace(subject: Subject, options: argparse.Namespace, size: Sequence[int]):
    """Export to a program in PyTorch's own operators.

    Returns:
        The program, what is free in words, and (batch, height, width) to verify at.

    Raises:
        SystemExit: It cannot be exported.
    """
    import torch

    from sapa_mm.ops.decompositions import decompositions

    extra = {'strict': False}
    if (
        'prefer_deferred_runtime_asserts_over_guards'
        in inspect.signature(torch.export.export).parameters
    ):
        # Sizes may be compared, as with "at least as large as"; that does not fix them.
        extra['prefer_deferred_runtime_asserts_over_guards'] = True
    problem = None
    for what, shape, free, checks in attempts(size, options.static):
        if problem:
            print(f'trying with free {what}: {problem}', file=sys.stderr, flush=True)
        # An upsampler's sizes are no multiples of each other: what is free there is free.
        if len(subject.inputs) > 1 and MULTIPLE in (getattr(d, 'fn', 0) for d in free.values()):
            break
        shapes = tuple(dict(free) for _ in subject.inputs) if free else None
        try:
            program = torch.export.export(
                subject.model, subject.make(*shape), dynamic_shapes=shapes, **extra
            )
            program = program.run_decompositions(decompositions())
            forget_coincidences(program)
            return program, what, checks
        except Exception as error:  # of whatever kind: the model is the user's
            problem = reason(error)
    raise SystemExit(f'{subject.name} cannot be exported: {problem}')


def write_onnx(
    program: 'torch.export.ExportedProgram', subject: Subject, path: Path, opset: int | None
) -> list[str]:
    """Write an ONNX file.

    Returns:
        Lines on its operators.

    Raises:
        SystemExit: An operator that is none of ONNX's, or none that the exporter knows.
    """
    import onnx
    import torch

    try:
        written = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=list(subject.inputs),
            output_names=[subject.output],
        )
    except Exception as error:
        raise SystemExit(f'{subject.name} cannot be written in ONNX: {reason(error)}') from error
    written.save(str(path), external_data=False)
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    foreign = {f'{node.domain}::{node.op_type}' for node in model.graph.node if node.domain}
    foreign |= {f'{f.domain}::{f.name}' for f in model.functions}
    if foreign:
        raise SystemExit(
            f'{subject.name} cannot be written in standard ONNX: it needs '
            f'{", ".join(sorted(foreign))}'
        )
    counts = Counter(node.op_type for node in model.graph.node)
    listed = ', '.join(f'{kind} {number}' for kind, number in counts.most_common())
    version = next(entry.version for entry in model.opset_import if not entry.domain)
    return [f'{counts.total()} nodes of opset {version}: {listed}']


def runner(path: Path) -> Callable[..., 'Tensor'] | None:
    """What runs a written file; None where there is nothing to run it."""
    import torch

    if path.suffix == '.pt2':
        return torch.export.load(str(path)).module()
    if missing(('onnxruntime',)):
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: 'Tensor') -> 'Tensor':
        # An input that the model has no use for is not in the file's.
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def verify(subject: Subject, path: Path, shapes: Iterable, tolerance: float) -> list[str]:
    """Compare a file with PyTorch.

    Returns:
        A line a shape.

    Raises:
        SystemExit: They differ.
    """
    import torch

    run = runner(path)
    if run is None:
        return ['not verified: that needs onnxruntime, pip install onnxruntime']
    lines = []
    for shape in shapes:
        inputs = subject.make(*shape)
        text = f'{size_text(shape[1:])}, batch {shape[0]}'
        with torch.no_grad():
            expected = subject.model(*inputs)
        try:
            with torch.no_grad():
                got = run(*inputs)
        except Exception as error:
            raise SystemExit(
                f'{subject.name}: the file fails at {text}: {reason(error)}'
            ) from error
        if got.shape != expected.shape:
            raise SystemExit(
                f'{subject.name}: the file gives {tuple(got.shape)} at {text}, PyTorch '
                f'{tuple(expected.shape)}'
            )
        difference = (got - expected).abs().max().item()
        scale = expected.abs().max().item()
        if not difference <= tolerance * scale:
            raise SystemExit(
                f'{subject.name}: the file differs by {difference:.2e} at {text}, where the '
                f'largest output is {scale:.2e}; tolerated: {tolerance:g} of it'
            )
        lines.append(f'verified at {text}: largest difference {difference:.2e} of {scale:.2e}')
    return lines


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Export, verify, print."""
    warnings.filterwarnings('ignore')  # of the frameworks and the exporter
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    try:
        check(options)
        if options.upsampler:
            subject = make_upsampler(options.upsampler, options.channels)
            size = options.size or UPSAMPLER_SIZE
        else:
            subject, size = read_segmentor(options.config, options.checkpoint, options.size)
    except ToolError as error:
        parser.error(str(error))
    import torch

    for name in ('torch.onnx', 'onnxscript', 'onnx_ir'):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with torch.no_grad():
            subject.model(*subject.make(1, *size))
    except Exception as error:  # of whatever kind: the model is the user's
        raise SystemExit(
            f'{subject.name} does not take {size_text(size)}: {reason(error)}'
        ) from error
    program, free, shapes = trace(subject, options, size)
    lines = []

    def write(path: Path) -> None:
        if path.suffix == '.onnx':
            lines.extend(write_onnx(program, subject, path, options.opset))
        else:
            torch.export.save(program, str(path))
        lines.extend(verify(subject, path, shapes, options.tolerance))

    write_atomically(options.out, write)
    lines = [f'free: {free}', *subject.notes, *lines]
    sys.stdout.write(
        '\n'.join([f'{options.out}: {options.out.stat().st_size:,} bytes', *lines, ''])
    )
