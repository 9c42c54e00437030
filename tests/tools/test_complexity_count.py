"""Everything expected here is computed by hand, or by mmengine's counter without this project."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn import functional as F

from sapa_mm.ops import embed
from sapa_mm.tools.complexity import count as counter
from sapa_mm.tools.complexity.report import model_section
from sapa_mm.tools.configs import find_config
from sapa_mm.upsamplers import build_upsampler

ROOT = Path(__file__).resolve().parents[2]
SAPA = ROOT / 'configs' / 'sapa'
GUIDED = SAPA / 'segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py'
BILINEAR = SAPA / 'segformer_mit-t_bilinear_1xb8-600_toy-160x160.py'
DETECTOR = SAPA / 'faster-rcnn_r18_fpn_sapa-b_1xb2-100_toy-160x160.py'

# The toy head has 64 channels, levels of 40, 20, 10 and 5 pixels a side, and six steps, here with
# the side of x.
STEPS = {'c4_c3': 5, 'c4_c2': 10, 'c4_c1': 20, 'c3_c2': 10, 'c3_c1': 20, 'c2_c1': 20}
# This is SAPA-G with C = 64, d = 32, K = 5. A pixel of x takes C d for the key and for the self
# projection each, C for the gate, and d for its product with the self term. A pixel of the guide
# takes C d for the query, d for the gate, and the scores and the assembly.
PER_LOW = 2 * 64 * 32 + 64 + 32
PER_HIGH = 64 * 32 + 32 + 25 * (32 + 64)
# These are of three projections and a gate, with bias, and of two LayerNorms.
SAPA_G_PARAMS = 3 * (64 * 32 + 32) + (64 + 1) + 2 * 2 * 64


def sapa_g_flops(side: int) -> int:
    return side**2 * (PER_LOW + 4 * PER_HIGH)


def mmengine_total(config: Path) -> int:
    """Count by mmengine's counter alone; the heads of these models need no data samples."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(Config.fromfile(config).model).eval()
    analyzer = FlopAnalyzer(model, (torch.rand(1, 3, 160, 160),))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analyzer.total()


def count(config: Path, size=(160, 160), **model):
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({f'model.{key.replace("__", ".")}': v for key, v in model.items()})
    return counter.count(cfg, size)


@pytest.fixture(scope='module')
def guided():
    return count(GUIDED)


@pytest.fixture(scope='module')
def baseline():
    return count(BILINEAR)


def test_steps_of_the_toy_segformer(guided):
    assert guided.model == 'EncoderDecoder' and guided.shape == (3, 160, 160)
    assert [step.name for step in guided.steps] == list(STEPS)
    for step in guided.steps:
        low = STEPS[step.name]
        assert step.host == 'decode_head' and step.kind == 'SAPA (gated)' and step.exact
        assert step.sizes == [((low, low), (2 * low, 2 * low))]
        assert step.params == SAPA_G_PARAMS == 6561
        assert step.flops == sapa_g_flops(low)


def test_total_is_the_baseline_less_its_interpolation_plus_the_steps(guided, baseline):
    assert baseline.flops == mmengine_total(BILINEAR)
    assert baseline.steps == []
    # The head interpolates all four levels to 40 x 40; mmengine counts 4 for each output element.
    interpolation = 4 * 4 * 64 * 40**2
    steps = sum(map(sapa_g_flops, STEPS.values()))
    assert guided.flops == baseline.flops - interpolation + steps
    assert guided.params == baseline.params + 6 * SAPA_G_PARAMS


def test_operators_inside_an_upsampler_are_not_counted_twice(guided):
    # mmengine alone knows none of the operators that make up these steps.
    steps = sum(map(sapa_g_flops, STEPS.values()))
    assert guided.flops == mmengine_total(GUIDED) + steps


def test_what_steps_leave_uncounted_is_not_listed(guided, baseline):
    assert guided.uncounted == baseline.uncounted
    assert baseline.uncounted['gelu'] == 5  # one for each of the transformer's five blocks


def test_an_upsampler_without_flops_is_counted_by_mmengine(guided):
    types = {'c4_c3': 'bilinear', 'c4_c2': 'deconv', 'c4_c1': 'nearest'}
    found = count(
        GUIDED, decode_head__step_cfgs={name: {'type': kind} for name, kind in types.items()}
    )
    steps = {step.name: step for step in found.steps}
    bilinear, deconv, nearest = (steps[name] for name in types)
    assert (bilinear.kind, deconv.kind, nearest.kind) == ('bilinear', 'ConvTranspose2d', 'nearest')
    assert not (bilinear.exact or deconv.exact or nearest.exact)
    assert bilinear.flops == 4 * 64 * 10**2 and bilinear.params == 0
    assert deconv.flops == 64 * 64 * 4**2 * 10**2 and deconv.params == 64 * 64 * 4**2 + 64
    assert nearest.flops == 64 * 40**2
    other = sum(sapa_g_flops(STEPS[name]) for name in types)
    assert found.flops - guided.flops == sum(steps[name].flops for name in types) - other
    lines = model_section('toy', found).splitlines()
    row = next(line for line in lines if line.startswith('| decode_head c4_c2'))
    assert re.search(r'\| +10 x 10 \| 20 x 20 \| +65,600 \| +0\.006554 \* \|$', row)
    assert '\\* Counted by mmengine: the upsampler has no method `flops`.' in lines


@MODELS.register_module()
class PairedToy(BaseModel):
    """Reads the guide once for both directions of the paired upsampler."""

    def __init__(self, upsample_cfg):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.upsamplers = nn.ModuleDict({'c2_c1': build_upsampler(upsample_cfg, 8)})

    def forward(self, inputs):
        guide = self.conv(inputs)
        upsampler = self.upsamplers['c2_c1']
        encoding = upsampler.encode(guide=guide)
        return upsampler(upsampler.downsample(guide, encoding), guide, encoding)


@pytest.mark.parametrize(
    'upsample_cfg, flops, pooling',
    [
        # A block takes two 5 x 5 filters, their product over 8 channels, and P; a pixel takes a
        # window of 3 x 3. It pools by 3 x 3 blocks of 4 pixels.
        (
            dict(type='A2U', mode='static', paired=True),
            16 * (51 * 8 + 36) + 64 * 9 * 8,
            16 * 9 * 4 * 8,
        ),
        # A block takes 4 x 4 to 16 hidden channels and 1 x 1 to 4; a pixel takes 8 products.
        (dict(type='IndexNet'), 16 * (16 * 8 * 16 + 16 * 4) + 64 * 8, 0),
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else '',
)
def test_a_guide_that_is_encoded_for_two_directions_counts_once(upsample_cfg, flops, pooling):
    model = {'type': 'PairedToy', 'upsample_cfg': upsample_cfg}
    found = counter.count(Config({'default_scope': 'mmseg', 'model': model}), (8, 8))
    assert found.shape == (2, 8, 8)
    assert [(step.host, step.flops, step.sizes) for step in found.steps] == [
        ('', flops, [((4, 4), (8, 8))])
    ]
    assert found.flops == 64 * 2 * 8 * 9 + flops + pooling


@MODELS.register_module()
class ProductsToy(BaseModel):
    def forward(self, inputs):
        rows = inputs.flatten(2)  # (1, 3, 40)
        product = torch.baddbmm(torch.zeros(1, 3, 3), rows, rows.mT)
        query = rows[:, None, :, :8]  # (1, 1, 3, 8)
        key, value = rows[:, None, :2, :8], rows[:, None, :2, :5]
        # Without a projection there is no product.
        embedded = embed(embed(inputs, torch.zeros(7, 3), torch.zeros(7)))
        return product, F.scaled_dot_product_attention(query, key, value), embedded


def test_products_that_mmengine_does_not_know_are_counted():
    cfg = Config({'default_scope': 'mmseg', 'model': {'type': 'ProductsToy'}})
    found = counter.count(cfg, (5, 8))
    assert found.flops == 3 * 40 * 3 + 3 * 2 * (8 + 5) + 40 * 3 * 7
    assert found.uncounted.keys().isdisjoint({'baddbmm', 'scaled_dot_product_attention', 'embed'})


def test_yolox_begins_with_the_pixels_of_blocks_as_channels():
    config = find_config('mmdet::yolox/yolox_s_8xb8-300e_coco.py')
    found = count(config, (64, 96))
    assert found.shape == (3, 64, 96)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(Config.fromfile(config).model).eval()
    assert found.flops == FlopAnalyzer(model, (torch.rand(1, 3, 64, 96),)).total()
    guided = count(SAPA / 'yolox_s_sapa-b_8xb8-300e_coco.py', (64, 96))
    steps = [(step.name, step.sizes) for step in guided.steps]
    assert steps == [('c3_c2', [((2, 3), (4, 6))]), ('c2_c1', [((4, 6), (8, 12))])]
    # mmengine counts an interpolation by its elements.
    interpolation = 256 * 4 * 6 + 128 * 8 * 12
    steps_flops = sum(step.flops for step in guided.steps)
    assert guided.flops == found.flops - interpolation + steps_flops


def test_roi_heads_get_all_proposals_whatever_the_weights():
    found = count(DETECTOR, (64, 96))
    assert found.proposals == 200
    assert [step.sizes for step in found.steps] == [
        [((2, 3), (4, 6))],
        [((4, 6), (8, 12))],
        [((8, 12), (16, 24))],
    ]
    torch.manual_seed(1)
    fewer = count(DETECTOR, (64, 96), test_cfg__rpn__max_per_img=50)
    assert fewer.proposals == 50
    box_head = 64 * 7 * 7 * 256 + 256 * 256 + 256 * 81 + 256 * 80 * 4
    assert found.flops - fewer.flops == 150 * box_head


def test_mask_classification_heads_and_their_pixel_decoder():
    # mmsegmentation's own counter refuses these heads.
    config = find_config('mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py')
    found = count(
        config,
        (64, 96),
        decode_head__pixel_decoder__type='mmdet.GuidedMSDeformAttnPixelDecoder',
        decode_head__pixel_decoder__upsample_cfg={'type': 'CARAFE'},
    )
    (step,) = found.steps
    assert (step.host, step.name) == ('decode_head.pixel_decoder', 'c2_c1')
    assert step.sizes == [((8, 12), (16, 24))]
    assert step.flops == 96 * 99_584
    assert step.params == 256 * 64 + 64 + 9 * 64 * 100 + 100
    assert found.flops > step.flops
