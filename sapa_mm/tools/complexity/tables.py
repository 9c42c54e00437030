"""The papers' tables of complexity, beside the same cells computed from what this project builds.

Everything computed comes from upsamplers that are built here, those of ADE20K and COCO by the hosts
and configs in configs/_base_; the constants are the papers' cells.
"""

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ...upsamplers import build_upsampler
from ..configs import own_configs
from ..presets import upsampler_config
from .count import Size, count_parameters, find_steps, recording, takes

UpsamplerCfg = dict[str, Any]

BASE = own_configs() / '_base_'
SUFFIXES = {'K': 10**3, 'M': 10**6}
# Every kind of figures is counted in this unit.
UNITS = {
    'GFLOPs': 10**9,
    'M parameters': 10**6,
    'parameters': 1,
    'FLOPs per low-resolution pixel': 1,
}

# These upsamplers are in none of the SAPA paper's tables; the values are names of presets.
OTHERS = {
    'FADE': 'fade',
    'FADE-Lite': 'fade-lite',
    'DySample': 'dysample',
    'DySample+': 'dysample-plus',
}
# The last layer of torchvision's ResNet-50, 2048 to 1000 with biases.
UNUSED_CLASSIFIER = 2048 * 1000 + 1000
PUBLISHED_G = {'self_projection': 'key', 'bias': False, 'norm_affine': False}
G_NOTE = (
    "The paper's Table 1 and its results on ADE20K and COCO count SAPA-G with one projection for "
    'the decoder feature, and without biases and affine LayerNorms: '
    "self_projection='key', bias=False, norm_affine=False. The default is the equation it prints."
)


@dataclasses.dataclass
class Cell:
    """A `Cell` is a figure of a table.

    Attributes:
        kind: Key of `UNITS`.
        computed: The figure, not divided by the unit.
        paper: What the paper prints, in its unit or with K or M behind it. Default: nothing.
        note: Why the two differ, or how the figure was counted. Default: none.
    """

    kind: str
    computed: int
    paper: str | None = None
    note: str | None = None

    @property
    def suffix(self) -> str:
        """Return the K or M behind the paper's figure, if there is one."""
        return self.paper[-1] if self.paper and self.paper[-1] in SUFFIXES else ''

    @property
    def unit(self) -> int:
        """Return what figures of this kind are counted in."""
        return UNITS[self.kind]

    @property
    def scaled(self) -> float:
        """Return the computed figure in what the paper counts in."""
        return self.computed / SUFFIXES.get(self.suffix, self.unit)

    @property
    def printed(self) -> float | None:
        """Return the paper's figure; None if it has none."""
        if self.paper is None:
            return None
        return float(self.paper.removesuffix(self.suffix).replace(',', ''))

    @property
    def difference(self) -> float | None:
        """Return the computed figure less the paper's, in what the paper counts in."""
        return None if self.printed is None else self.scaled - self.printed

    @property
    def decimals(self) -> int:
        """Return how many decimals the paper's figure has."""
        return len((self.paper or '').removesuffix(self.suffix).partition('.')[2])

    @property
    def agrees(self) -> bool | None:
        """Return whether the two are equal at the paper's precision; None without the paper's."""
        if self.paper is None:
            return None
        return f'{self.scaled:,.{self.decimals}f}{self.suffix}' == self.paper


# A row has its names and its cells.
TableRow = tuple[tuple[str, ...], list[Cell]]


@dataclasses.dataclass
class Table:
    """A `Table` is a table of a paper.

    Attributes:
        title: What it is about.
        labels: Heads of the columns that name a row.
        rows: The names and the cells of every row.
    """

    title: str
    labels: tuple[str, ...]
    rows: list[TableRow]


def compared() -> dict[str, UpsamplerCfg]:
    """Return configs of the upsamplers that the SAPA paper compares, and after them of others.

    The others are the default SAPA-G, and upsamplers that the paper does not have.
    """
    names = ('carafe', 'index-net', 'a2u', 'sapa-i', 'sapa-b', 'sapa-g')
    titles = ('CARAFE', 'IndexNet', 'A2U', 'SAPA-I', 'SAPA-B', 'SAPA-G')
    cfgs = {title: upsampler_config(name) for title, name in zip(titles, names, strict=True)}
    default = cfgs['SAPA-G']
    others = {title: upsampler_config(name) for title, name in OTHERS.items()}
    return {**cfgs, 'SAPA-G': default | PUBLISHED_G, 'SAPA-G, default': default, **others}


class Host:
    """A `Host` is the part of a model that upsamples, without the rest of the model.

    Args:
        config: File in configs/_base_/models.
        path: Path of the host in the model.
        size: (H, W) of the image, whose features have strides of up to 32, each half the next.
        device: Where the host can run to give the sizes of its steps.
    """

    def __init__(self, config: str, path: str, size: Size, device: str = 'meta'):
        self.cfg = Config.fromfile(BASE / 'models' / config)
        # A fragment of a config may leave that to its runtime.
        self.scope = self.cfg.get('default_scope', 'mmseg')
        self.part, _, self.path = path.partition('.')
        host = self.build({'type': 'nearest'}, device).get_submodule(self.path)
        channels = self.cfg.model[self.part].in_channels
        features = [
            torch.zeros(1, c, *(-(-n // stride) for n in size), device=device)
            for c, stride in zip(reversed(channels), (32, 16, 8, 4, 2), strict=False)
        ][::-1]
        with recording(host) as steps, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the frameworks warn about older versions
            host.eval()(features, *([[{}]] if takes(host, 'batch_img_metas') else []))
        self.sizes = {step.name: step.sizes for step in steps}

    def build(self, upsample_cfg: UpsamplerCfg, device: str) -> nn.Module:
        """Build the part of the model that has the host."""
        cfg = copy.deepcopy(self.cfg.model[self.part])
        node = cfg[self.path] if self.path else cfg
        node.upsample_cfg = upsample_cfg
        scope = DefaultScope.overwrite_default_scope(self.scope)
        with scope, warnings.catch_warnings(), torch.device(device):
            warnings.simplefilter('ignore')  # the frameworks warn about losses
            return MODELS.build(cfg)

    def added(self, upsample_cfg: UpsamplerCfg) -> dict[str, int]:
        """Count FLOPs and parameters of all steps with these upsamplers.

        Returns:
            Figures by their kind, not yet in their units.
        """
        flops = params = 0
        for step, upsampler in find_steps(self.build(upsample_cfg, 'meta')):
            flops += sum(upsampler.flops(*sizes) for sizes in self.sizes[step.name])
            params += step.params
        return {'GFLOPs': flops, 'M parameters': params}


def host_table(
    title: str,
    hosts: Mapping[str, Host],
    papers: Mapping[str, Mapping[str, str]],
    notes: Mapping[tuple[str, str, str], str],
) -> Table:
    """Make the table of what upsamplers add to models.

    Args:
        title: Title of the table.
        hosts: Hosts by the model's name.
        papers: Kinds of figures, to the models' cells in the order of `compared`, divided by
            blanks.
        notes: (model, upsampler, kind) to the note there.
    """
    rows: list[TableRow] = []
    cfgs = compared()
    for model, host in hosts.items():
        printed = {
            kind: dict(zip(cfgs, cells[model].split(), strict=False))
            for kind, cells in papers.items()
        }
        for name, cfg in cfgs.items():
            added = host.added(cfg)
            cells = [
                Cell(kind, added[kind], printed[kind].get(name), notes.get((model, name, kind)))
                for kind in papers
            ]
            if name.startswith('SAPA-G'):
                cells[0].note = G_NOTE
            rows.append(((model, name), cells))
    return Table(title, ('model', 'upsampler'), rows)


def ade20k() -> list[Table]:
    """Return what upsampling adds to the segmentation models of the SAPA paper."""
    pixel_decoder = 'decode_head.pixel_decoder'
    hosts = {
        'SegFormer-B1': Host('segformer_mit-b1_ade20k.py', 'decode_head', (512, 512)),
        'MaskFormer Swin-B': Host('maskformer_swin-b_ade20k.py', pixel_decoder, (640, 640)),
        # Its encoder keeps sizes in tensors, which have no values on the meta device.
        'Mask2Former Swin-B': Host(
            'mask2former_swin-b_ade20k.py', pixel_decoder, (640, 640), 'cpu'
        ),
    }
    papers = {
        'GFLOPs': {
            'SegFormer-B1': '1.45 30.65 0.41 0.75 1.02 1.02',
            'MaskFormer Swin-B': '0.84 17.64 0.23 0.43 0.59 0.59',
            'Mask2Former Swin-B': '0.63 13.44 0.18 0.33 0.45 0.45',
        },
        'M parameters': {
            'SegFormer-B1': '0.44 12.60 0.06 0.00 0.10 0.10',
            'MaskFormer Swin-B': '0.22 6.30 0.03 0.00 0.05 0.05',
            'Mask2Former Swin-B': '0.07 2.10 0.01 0.00 0.02 0.02',
        },
    }
    notes = {
        ('Mask2Former Swin-B', 'CARAFE', 'GFLOPs'): (
            'The formula that gives all other cells of CARAFE gives 0.637 here; 0.63 is that '
            'truncated.'
        )
    }
    title = 'Added by upsampling: SAPA paper, semantic segmentation on ADE20K'
    return [host_table(title, hosts, papers, notes)]


def coco() -> list[Table]:
    """Return what upsampling adds to the detector of the SAPA paper."""
    model = 'Faster R-CNN R50'
    hosts = {model: Host('faster-rcnn_r50_fpn_coco.py', 'neck', (800, 1344))}
    papers = {'M parameters': {model: '0.22 6.30 0.03 0 0.05 0.05'}}
    title = 'Added by upsampling: SAPA paper, object detection on COCO'
    return [host_table(title, hosts, papers, {})]


def stage_table(
    title: str,
    stages: Sequence[tuple[int, int]],
    entries: Sequence[tuple[str, UpsamplerCfg, str | None, str | None]],
    kind: str,
) -> Table:
    """Make the table of the parameters of one upsampler for each stage.

    Args:
        title: Title of the table.
        stages: Channels of the guide and of the decoder feature.
        entries: Name, config, the paper's cell and the note of every row.
        kind: Kind of the figures.
    """
    rows: list[TableRow] = []
    for name, cfg, paper, note in entries:
        modules = [build_upsampler(cfg, channels, guide) for guide, channels in stages]
        rows.append(((name,), [Cell(kind, sum(map(count_parameters, modules)), paper, note)]))
    return Table(title, ('upsampler',), rows)


def per_pixel() -> Table:
    """Count multiply-adds per low-resolution pixel: the SAPA paper's Table 1."""
    channels, low, high = 256, (16, 16), (32, 32)
    kind = 'FLOPs per low-resolution pixel'
    cfgs = compared()
    index_net = cfgs.pop('IndexNet')
    cfgs |= {'IndexNet HIN': index_net, 'IndexNet M2O': {**index_net, 'variant': 'm2o'}}
    papers = {
        'SAPA-I': '51,200',
        'SAPA-B': '69,760',
        'SAPA-G': '70,176',
        'CARAFE': '99,584',
        'IndexNet HIN': '2,100,224',
        'IndexNet M2O': '4,457,472',
        'A2U': '27,940',
    }
    rows: list[TableRow] = []
    for name in [*papers, 'SAPA-G, default', *OTHERS]:
        upsampler: Any = build_upsampler(cfgs[name], channels, channels)
        note = G_NOTE if name.startswith('SAPA-G') else None
        flops = upsampler.flops(low, high) // (low[0] * low[1])
        cell = Cell(kind, flops, papers.get(name), note)
        rows.append(((name,), [cell]))
    title = 'Operators at C = 256 (SAPA: K = 5, d = 32): formulas in Table 1 of the SAPA paper'
    return Table(title, ('upsampler',), rows)


def a2u_variants() -> Table:
    """Count parameters of A2U's variants: the A2U paper's ablation."""

    def variant(mode: str, channel_wise: bool = False, **options: bool) -> UpsamplerCfg:
        return {'type': 'A2U', 'mode': mode, 'channel_wise': channel_wise, **options}

    entries = [
        ('static-pw-cw', variant('static', True, point_wise=True), '0.10M', None),
        ('static-cw', variant('static', True), '26K', None),
        ('hybrid-cw', variant('hybrid', True), '44K', None),
        ('hybrid-cs', variant('hybrid'), '19K', None),
        ('dynamic-cw', variant('dynamic', True), '0.20M', None),
        ('dynamic-cs', variant('dynamic'), '20K', None),
        ('dynamic-cs-d', variant('dynamic', paired=True), '38K', None),
    ]
    title = 'A2U in the stages of matting (C = 64, 64, 128, 256): A2U paper'
    return stage_table(title, [(c, c) for c in (64, 64, 128, 256)], entries, 'parameters')


def depth() -> list[Table]:
    """Return BTS's parameters and what upsampling adds: the SAPA paper's depth estimation."""
    # Planes are computed outside of autocast, which the meta device does not have.
    host = Host('bts_r50.py', 'decode_head', (64, 64), 'cpu')
    with DefaultScope.overwrite_default_scope('mmseg'), torch.device('meta'):
        encoder = MODELS.build({**host.cfg.model.backbone, 'init_cfg': None})
    network = count_parameters(encoder) + count_parameters(host.build({'type': 'nearest'}, 'meta'))
    whole = Cell(
        'M parameters',
        network + UNUSED_CLASSIFIER,
        '49.53',
        f"{network:,}, and the {UNUSED_CLASSIFIER:,} of the classifier of torchvision's ResNet-50, "
        'which the paper counts though nothing uses it.',
    )
    cfgs = compared()
    index_net = (
        'With biases in its convolutions, which it has nowhere else in the paper, it is 44,197,264 '
        'and so 44.20.'
    )
    a2u = (
        'With encoder_norm=True it is 0.08, and no other cell of A2U in the tables of the SAPA '
        'paper changes.'
    )
    entries = [
        ('CARAFE', cfgs['CARAFE'], '0.41', None),
        ('IndexNet', cfgs['IndexNet'], '44.20', index_net),
        ('A2U', cfgs['A2U'], '0.08', a2u),
        ('A2U, encoder_norm=True', {**cfgs['A2U'], 'encoder_norm': True}, '0.08', None),
        ('SAPA-B', cfgs['SAPA-B'], '0.16', None),
        (
            'SAPA-G, default',
            cfgs['SAPA-G, default'],
            '0.25',
            'This table alone counts a projection of its own for the decoder feature, biases and '
            'affine LayerNorms.',
        ),
    ]
    rows: list[TableRow] = [(('nearest, the whole network',), [whole])]
    for name, cfg, paper, note in entries:
        added = host.added(cfg)['M parameters']
        rows.append(((name,), [Cell('M parameters', added, paper, note)]))
    title = 'BTS-R50, and added to it by upsampling: SAPA paper, depth estimation on NYU Depth v2'
    return [Table(title, ('upsampler',), rows)]


def matting() -> Table:
    """Count parameters that upsamplers add to the matting network: the SAPA paper's matting."""
    cfgs = compared()
    default = cfgs['SAPA-G, default']
    note = "This table counts it with self_projection='key', biases and affine LayerNorms."
    entries = [
        ('CARAFE', cfgs['CARAFE'], '0.26', None),
        ('A2U', cfgs['A2U'], '0.02', None),
        ('SAPA-B', cfgs['SAPA-B'], '0.04', None),
        ("SAPA-G, self_projection='key'", {**default, 'self_projection': 'key'}, '0.04', note),
        ('SAPA-G, default', default, None, None),
    ]
    title = 'Added to the matting network (C = 64, 64, 128, 256): SAPA paper'
    return stage_table(title, [(c, c) for c in (64, 64, 128, 256)], entries, 'M parameters')


def ops() -> list[Table]:
    """Return the tables that need no network."""
    return [per_pixel(), a2u_variants(), matting()]
