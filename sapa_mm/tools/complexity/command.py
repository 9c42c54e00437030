"""Count a model's parameters and FLOPs, and those of each of its upsampling steps.

FLOPs are multiply-adds, counted once, of one image. An operator of sapa_mm counts by the formula of
its paper, everything else as mmengine counts it; matrix products that mmengine does not know are
counted too, and what is left out is listed. For that the model runs once, on the CPU, with random
weights: nothing is downloaded. It runs from the backbone through the heads, without auxiliary
heads and post-processing. A RoI head gets as many proposals as the config allows.

--table computes the papers' tables from what this project builds and puts the papers' figures
beside them. Its exit status is 1 if a cell differs from the paper's and no note says why.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import itertools
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from ..arguments import output_file, positive
from ..configs import package_folder, read_config, reason
from ..errors import ToolError
from ..output import markdown_table, write_json, write_text

if TYPE_CHECKING:  # importing the frameworks takes seconds: not before the arguments are checked
    from mmengine.config import Config

    from .count import Complexity
    from .tables import Cell, Table

# Tables, and the frameworks that each needs.
TABLES = {'ade20k': ('mmseg', 'mmdet'), 'coco': ('mmdet',), 'ops': ()}
REQUIRED = {
    'mmengine': 'pip install mmengine==0.10.7',
    'sapa_mm': 'pip install -e . in its checkout',
}
DISTRIBUTIONS = ('torch', 'mmengine', 'mmsegmentation', 'mmdet', 'sapa_mm')

EPILOG = """\
CONFIG is a path or the name of a config that a framework installs:

  %(prog)s configs/sapa/segformer_mit-b1_sapa-g_8xb2-160k_ade20k-512x512.py
  %(prog)s configs/baseline/*.py configs/sapa/maskformer*.py --markdown complexity.md
  %(prog)s mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --shape 640 640
  %(prog)s --table ade20k --table ops --json tables.json"""


@dataclasses.dataclass
class Job:
    """A model to count.

    Attributes:
        name: CONFIG as it was given.
        cfg: Read from there.
        size: (H, W) of the image, padded.
    """

    name: str
    cfg: 'Config'
    size: tuple[int, int]


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog,
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('configs', nargs='*', metavar='CONFIG', help='models to count')
    add(
        '--shape',
        nargs=2,
        type=positive,
        metavar=('H', 'W'),
        help="size of the image (the config's: crop size in mmsegmentation, test size in "
        'mmdetection, padded as it pads)',
    )
    add(
        '--table',
        action='append',
        choices=TABLES,
        default=[],
        help="a paper's table: what upsampling adds to its models on ADE20K or COCO, or the "
        'operators alone; may be given several times',
    )
    add('--json', type=output_file, metavar='FILE', help='file to write all figures to')
    add('--markdown', type=output_file, metavar='FILE', help='file to write what is printed to')
    return parser


def is_size(value: object) -> bool:
    """Whether this is a pair of positive ints."""
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(n, int) and n > 0 for n in value)
    )


def config_size(cfg: dict) -> tuple[int, int] | None:
    """(H, W) of the image that a config is about; None if it does not say."""
    if cfg['default_scope'] == 'mmseg':
        preprocessor = cfg['model'].get('data_preprocessor') or {}
        for size in (preprocessor.get('size'), cfg.get('crop_size')):
            if is_size(size):
                return tuple(size)
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    for transform in cfg.get('test_pipeline') or dataset.get('pipeline') or []:
        scale = transform.get('scale')
        if is_size(scale):
            # (W, H); where the ratio is kept, the bounds of the longer and the shorter side.
            return (min(scale), max(scale)) if transform.get('keep_ratio') else tuple(scale)[::-1]
    return None


def read_job(name: str, shape: Sequence[int] | None) -> Job:
    """Read a config.

    Args:
        name: CONFIG.
        shape: What --shape says.

    Raises:
        ToolError: No such config, a broken one, or one that has no model or size.
    """
    cfg = read_config(name)
    size = shape or config_size(cfg)
    if size is None:
        raise ToolError(f'CONFIG: {name} names no size of its images; give --shape H W')
    preprocessor = cfg.model.get('data_preprocessor') or {}
    divisor = preprocessor.get('pad_size_divisor', 1)
    return Job(name, cfg, tuple(-(-n // divisor) * divisor for n in size))


def size_text(size: Sequence[int]) -> str:
    """Format a size: ``16 x 32``."""
    return ' x '.join(map(str, size))


def giga(flops: int) -> str:
    """Format FLOPs as GFLOPs, with four digits or more."""
    return f'{flops / 1e9:.2f}' if flops >= 10**10 else f'{flops / 1e9:#.4g}'


def model_lines(name: str, found: 'Complexity') -> list[str]:
    """Markdown of what was counted of a model."""
    lines = [f'## {name}', '', f'{found.model}, image {size_text(found.shape)}']
    if found.proposals is not None:
        lines[-1] += f', {found.proposals} proposals'
    rows = [('model', f'{found.params:,}', giga(found.flops))]
    if found.steps:
        params = sum(step.params for step in found.steps)
        rows.append(('in it: upsampling', f'{params:,}', giga(sum(s.flops for s in found.steps))))
    lines += ['', markdown_table(('', 'parameters', 'GFLOPs'), rows, texts=1, pad=True), '']
    if found.steps:
        rows = []
        for step in found.steps:
            low, high = (
                ', '.join(dict.fromkeys(map(size_text, sizes))) or 'not called'
                for sizes in (zip(*step.sizes, strict=True) if step.sizes else ((), ()))
            )
            flops = giga(step.flops) + ('' if step.exact else ' *')
            title = ' '.join(filter(None, (step.host, step.name)))
            rows.append((title, step.kind, low, high, f'{step.params:,}', flops))
        head = ('step', 'upsampler', 'from', 'to', 'parameters', 'GFLOPs')
        lines += [markdown_table(head, rows, texts=2, pad=True), '']
        if not all(step.exact for step in found.steps):
            lines += ['\\* Counted by mmengine: the upsampler has no method `flops`.', '']
    if found.uncounted:
        listed = ', '.join(f'{op} ({number})' for op, number in found.uncounted.items())
        lines += [f'Not counted, with how often they ran: {listed}.', '']
    return lines


def cell_texts(cell: 'Cell') -> tuple[str, str, str]:
    """The computed figure, the paper's and the difference."""
    whole = cell.unit == 1
    computed = f'{cell.computed:,}' if whole else f'{cell.computed / cell.unit:.4f}'
    if cell.paper is None:
        return computed, '-', '-'
    digits = 0 if whole and not cell.suffix else cell.decimals + 2
    return computed, cell.paper, f'{cell.difference:+,.{digits}f}{cell.suffix}'


def table_lines(table: 'Table') -> list[str]:
    """Markdown of a table beside the paper's."""
    notes: dict[str, int] = {}
    rows = []
    for labels, cells in table.rows:
        row, marks = list(labels), []
        for cell in cells:
            row += cell_texts(cell)
            if cell.note:
                marks.append(f'({notes.setdefault(cell.note, len(notes) + 1)})')
            elif cell.agrees is False:
                marks.append('differs')
        rows.append([*row, ' '.join(marks)])
    kinds = [cell.kind for cell in table.rows[0][1]]
    columns = itertools.chain.from_iterable((kind, 'paper', 'difference') for kind in kinds)
    head = (*table.labels, *columns, 'note')
    lines = [
        f'## {table.title}',
        '',
        markdown_table(head, rows, texts=len(table.labels), pad=True),
        '',
    ]
    verdicts = [cell.agrees for _, cells in table.rows for cell in cells if cell.paper]
    equal = f'{sum(verdicts)} of {len(verdicts)} figures'
    lines += [f"{equal} are the paper's, at its precision.", '']
    for note, number in notes.items():
        lines += [f'({number}) {note}', '']
    return lines


def versions() -> dict[str, str]:
    """Of what the figures depend on, as far as it is installed."""
    found = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def table_record(name: str, table: 'Table') -> dict:
    """What the JSON holds of a table."""
    rows = [
        {
            **dict(zip(table.labels, labels, strict=True)),
            'cells': [
                {**dataclasses.asdict(c), 'difference': c.difference, 'agrees': c.agrees}
                for c in cells
            ],
        }
        for labels, cells in table.rows
    ]
    return {'table': name, 'title': table.title, 'rows': rows}


def parse(
    argv: Sequence[str] | None, prog: str | None = None
) -> tuple[argparse.Namespace, list[Job]]:
    """Parse the options and read the configs."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    if not options.configs and not options.table:
        parser.error('expected a CONFIG or --table, got neither')
    if options.shape and not options.configs:
        parser.error('argument --shape: expected a CONFIG with it; the tables have their own sizes')
    try:
        for package, command in REQUIRED.items():
            if importlib.util.find_spec(package) is None:
                raise ToolError(f'{package} is not installed: {command}')
        for package in itertools.chain.from_iterable(TABLES[name] for name in options.table):
            package_folder(package)
        return options, [read_job(name, options.shape) for name in options.configs]
    except ToolError as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Count, print, and write the files.

    Returns:
        Exit status: 1 if a cell of a table differs from the paper's without a note.
    """
    warnings.filterwarnings('ignore', 'pkg_resources', UserWarning)  # mmengine's
    options, jobs = parse(argv, prog)
    from .count import count

    text = ''
    record = {'versions': versions(), 'models': [], 'tables': []}

    def show(lines: list[str]) -> None:
        nonlocal text
        text += '\n'.join(lines) + '\n'
        print('\n'.join(lines), flush=True)

    for i, job in enumerate(jobs, 1):
        print(f'[{i}/{len(jobs)}] {job.name} runs on the CPU', file=sys.stderr, flush=True)
        try:
            found = count(job.cfg, job.size)
        except Exception as error:  # of whatever kind: the model is the user's
            size = size_text(job.size)
            raise SystemExit(
                f'{job.name} cannot be built, or cannot run at {size}: {reason(error)}'
            ) from error
        show(model_lines(job.name, found))
        record['models'].append({'config': job.name, **dataclasses.asdict(found)})

    unexplained = []
    if options.table:
        from . import tables
    for name in dict.fromkeys(options.table):
        for table in getattr(tables, name)():
            show(table_lines(table))
            record['tables'].append(table_record(name, table))
            unexplained += [
                f'{", ".join(labels)}: {cell.kind} differ from the paper'
                for labels, cells in table.rows
                for cell in cells
                if cell.agrees is False and not cell.note
            ]
    if options.json:
        write_json(options.json, record)
    if options.markdown:
        write_text(options.markdown, text)
    for line in unexplained:
        print(line, file=sys.stderr)
    return int(bool(unexplained))
