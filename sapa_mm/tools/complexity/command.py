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
import itertools
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeGuard

from ...frameworks import DISTRIBUTIONS
from ..arguments import output_file, positive
from ..configs import package_folder, read_config, reason
from ..errors import ToolError, reported_by
from ..output import write_json, write_text
from .report import model_section, size_text, table_section

if TYPE_CHECKING:  # these need mmengine, without which --help works
    from mmengine.config import Config

    from .count import Complexity
    from .tables import Table

# Every table needs these frameworks.
TABLES = {'ade20k': ('mmseg', 'mmdet'), 'coco': ('mmdet',), 'depth': ('mmseg',), 'ops': ()}

EPILOG = """\
CONFIG is a path or the name of a config that a framework installs:

  %(prog)s configs/sapa/segformer_mit-b1_sapa-g_8xb2-160k_ade20k-512x512.py
  %(prog)s configs/baseline/*.py configs/sapa/maskformer*.py --markdown complexity.md
  %(prog)s mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --shape 640 640
  %(prog)s --table ade20k --table ops --json tables.json"""


@dataclasses.dataclass
class Job:
    """A `Job` is a model to count.

    Attributes:
        name: CONFIG as it was given.
        cfg: The config that was read from there.
        size: (H, W) of the image, padded.
    """

    name: str
    cfg: 'Config'
    size: tuple[int, int]


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the options."""
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
        help="a paper's table: what upsampling adds to its models on ADE20K, on COCO or of depth, "
        'or the operators alone; may be given several times',
    )
    add('--json', type=output_file, metavar='FILE', help='file to write all figures to')
    add('--markdown', type=output_file, metavar='FILE', help='file to write what is printed to')
    return parser


def is_size(value: object) -> TypeGuard[Sequence[int]]:
    """Return whether this is a pair of positive ints."""
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(n, int) and n > 0 for n in value)
    )


def config_size(cfg: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (H, W) of the image that a config is about; None if it does not say."""
    if cfg['default_scope'] == 'mmseg':
        preprocessor = cfg['model'].get('data_preprocessor') or {}
        for size in (preprocessor.get('size'), cfg.get('crop_size')):
            if is_size(size):
                return size[0], size[1]
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    for transform in cfg.get('test_pipeline') or dataset.get('pipeline') or []:
        scale = transform.get('scale')
        if is_size(scale):
            # It is (W, H); where the ratio is kept, it bounds the longer and the shorter side.
            return (min(scale), max(scale)) if transform.get('keep_ratio') else (scale[1], scale[0])
    return None


def padded_size(
    name: str, cfg: 'Config', shape: Sequence[int] | None, option: str = '--shape'
) -> tuple[int, int]:
    """Return (H, W) of the image of a config, padded as its model pads.

    Args:
        name: CONFIG.
        cfg: What was read from there.
        shape: (H, W) of the image, if the user gave it.
        option: The option by which the user can.

    Raises:
        ToolError: Neither the user nor the config says it.
    """
    size = shape or config_size(cfg)
    if size is None:
        raise ToolError(f'CONFIG: {name} names no size of its images; give {option} H W')
    preprocessor = cfg.model.get('data_preprocessor') or {}
    divisor = preprocessor.get('pad_size_divisor', 1)
    height, width = (-(-n // divisor) * divisor for n in size)
    return height, width


def read_job(name: str, shape: Sequence[int] | None) -> Job:
    """Read a config.

    Args:
        name: CONFIG.
        shape: What --shape says.

    Raises:
        ToolError: No such config, a broken one, or one that has no model or size.
    """
    cfg = read_config(name)
    return Job(name, cfg, padded_size(name, cfg, shape))


def versions() -> dict[str, str]:
    """Return the versions of what the figures depend on, as far as it is installed."""
    found = {}
    for name in ('torch', *itertools.chain(*DISTRIBUTIONS.values()), 'sapa_mm'):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def table_record(name: str, table: 'Table') -> dict[str, object]:
    """Return what the JSON holds of a table.

    Args:
        name: Name of the table in `TABLES`.
        table: The table.
    """
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


def unexplained(table: 'Table') -> list[str]:
    """Name every cell of a table that differs from the paper's without a note."""
    return [
        f'{", ".join(labels)}: {cell.kind} differ from the paper'
        for labels, cells in table.rows
        for cell in cells
        if cell.agrees is False and not cell.note
    ]


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
    with reported_by(parser):
        for package in itertools.chain.from_iterable(TABLES[name] for name in options.table):
            package_folder(package)
        jobs = [read_job(name, options.shape) for name in options.configs]
    return options, jobs


def count_job(job: Job) -> 'Complexity':
    """Count a model.

    Raises:
        SystemExit: It cannot be built or run; the message says why.
    """
    from .count import count

    try:
        return count(job.cfg, job.size)
    except Exception as error:  # whatever it is: the model is the user's
        size = size_text(job.size)
        raise SystemExit(
            f'{job.name} cannot be built, or cannot run at {size}: {reason(error)}'
        ) from error


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Count, print, and write the files.

    Args:
        argv: The arguments. Default: those of this process.
        prog: What the user calls it. Default: this process's script.

    Returns:
        Exit status: 1 if a cell of a table differs from the paper's without a note.
    """
    warnings.filterwarnings('ignore', 'pkg_resources', UserWarning)  # mmengine's
    options, jobs = parse(argv, prog)
    sections: list[str] = []
    models: list[dict[str, object]] = []
    records: list[dict[str, object]] = []
    differing: list[str] = []

    def show(section: str) -> None:
        sections.append(section)
        print(section, flush=True)

    for i, job in enumerate(jobs, 1):
        print(f'[{i}/{len(jobs)}] {job.name} runs on the CPU', file=sys.stderr, flush=True)
        found = count_job(job)
        show(model_section(job.name, found))
        models.append({'config': job.name, **dataclasses.asdict(found)})
    if options.table:
        from . import tables
    for name in dict.fromkeys(options.table):
        for table in getattr(tables, name)():
            show(table_section(table))
            records.append(table_record(name, table))
            differing += unexplained(table)
    if options.json:
        write_json(options.json, {'versions': versions(), 'models': models, 'tables': records})
    if options.markdown:
        write_text(options.markdown, ''.join(f'{section}\n' for section in sections))
    for line in differing:
        print(line, file=sys.stderr)
    return int(bool(differing))
