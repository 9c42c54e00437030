"""Everything expected here is computed by hand, or by mmengine's counter without this project."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn import functional as F

from sapa_mm.tools import launch
from sapa_mm.tools.complexity import command as complexity
from sapa_mm.tools.complexity import count as counter
from sapa_mm.tools.complexity import tables
from sapa_mm.upsamplers import build_upsampler

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'

SAPA = ROOT / 'configs' / 'sapa'
GUIDED = SAPA / 'segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py'
BILINEAR = SAPA / 'segformer_mit-t_bilinear_1xb8-600_toy-160x160.py'
DETECTOR = SAPA / 'faster-rcnn_r18_fpn_sapa-b_1xb2-100_toy-160x160.py'

# The toy head: 64 channels, levels of 40, 20, 10 and 5 pixels a side, six steps by the side of x.
STEPS = {'c4_c3': 5, 'c4_c2': 10, 'c4_c1': 20, 'c3_c2': 10, 'c3_c1': 20, 'c2_c1': 20}
# SAPA-G with C = 64, d = 32, K = 5. Per pixel of x: key and self projection C d each, gate C, its
# product with the self term d. Per pixel of the guide: query C d, gate d, scores and assembly.
PER_LOW = 2 * 64 * 32 + 64 + 32
PER_HIGH = 64 * 32 + 32 + 25 * (32 + 64)
# Three projections and a gate, with bias, and two LayerNorms.
SAPA_G_PARAMS = 3 * (64 * 32 + 32) + (64 + 1) + 2 * 2 * 64


def sapa_g_flops(side: int) -> int:
    return side**2 * (PER_LOW + 4 * PER_HIGH)


def mmengine_total(config: Path) -> int:
    """By mmengine's counter alone; the heads of these models need no data samples."""
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


def test_layers_inside_an_upsampler_are_not_counted_twice(guided):
    def by_mmengine(side):
        low, high = side**2, 4 * side**2
        projections = low * (2 * 64 * 32 + 64) + high * 64 * 32
        return projections + 5 * 64 * (low + high)  # 5 per element of a LayerNorm

    layers = sum(map(by_mmengine, STEPS.values()))
    steps = sum(map(sapa_g_flops, STEPS.values()))
    assert guided.flops == mmengine_total(GUIDED) - layers + steps


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
    lines = complexity.model_lines('toy', found)
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
        # Per block: two 5 x 5 filters, their product over 8 channels, P. Per pixel: 3 x 3 window.
        # It pools by 3 x 3 blocks of 4 pixels.
        (
            dict(type='A2U', mode='static', paired=True),
            16 * (51 * 8 + 36) + 64 * 9 * 8,
            16 * 9 * 4 * 8,
        ),
        # Per block: 4 x 4 to 16 hidden channels, 1 x 1 to 4. Per pixel: 8 products.
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
        return product, F.scaled_dot_product_attention(query, key, value)


def test_products_that_mmengine_does_not_know_are_counted():
    cfg = Config({'default_scope': 'mmseg', 'model': {'type': 'ProductsToy'}})
    found = counter.count(cfg, (5, 8))
    assert found.flops == 3 * 40 * 3 + 3 * 2 * (8 + 5)
    assert found.uncounted.keys().isdisjoint({'baddbmm', 'scaled_dot_product_attention'})


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
    config = launch.find_config('mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py')
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


@pytest.mark.parametrize(
    'cfg, size',
    [
        ({'crop_size': (512, 640)}, (512, 640)),
        ({'crop_size': (512, 512), 'preprocessor': {'size': (640, 320)}}, (640, 320)),
        ({'test_pipeline': [{'type': 'Resize', 'scale': (2048, 512)}]}, (512, 2048)),
        ({'default_scope': 'mmdet', 'scale': (1333, 800), 'keep_ratio': True}, (800, 1333)),
        ({'default_scope': 'mmdet', 'scale': (800, 1333), 'keep_ratio': True}, (800, 1333)),
        ({'default_scope': 'mmdet', 'scale': (640, 320), 'keep_ratio': False}, (320, 640)),
        ({'default_scope': 'mmdet', 'crop_size': (512, 512)}, None),
        ({'default_scope': 'mmdet', 'scale': 1.0}, None),
    ],
)
def test_the_size_of_the_image_is_the_configs(cfg, size):
    cfg = {'default_scope': 'mmseg', 'model': {}, **cfg}
    if 'preprocessor' in cfg:
        cfg['model'] = {'data_preprocessor': cfg.pop('preprocessor')}
    if 'scale' in cfg:
        resize = {'scale': cfg.pop('scale'), 'keep_ratio': cfg.pop('keep_ratio', False)}
        pipeline = [{'type': 'LoadImageFromFile'}, resize]
        cfg['test_dataloader'] = {'dataset': {'pipeline': pipeline}}
    assert complexity.config_size(cfg) == size


def test_images_of_coco_are_padded():
    job = complexity.read_job('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', None)
    assert job.size == (800, 1344)
    assert complexity.read_job(str(DETECTOR), (33, 64)).size == (64, 64)


# The papers' tables. Per low-resolution pixel at C = 256; parameters of one upsampler.
PER_PIXEL = {
    'CARAFE': 256 * 64 + 36 * 25 * 64 + 4 * 25 * 256,
    'IndexNet': 32 * 256**2 + 12 * 256,
    'A2U': 73 * 256 + 4 * 9 + 4 * 9 * 256,
    'SAPA-I': 8 * 25 * 256,
    'SAPA-B': 5 * 256 * 32 + 4 * 25 * (32 + 256),
    'SAPA-G': 5 * 256 * 32 + 4 * 25 * (32 + 256) + 256 + 5 * 32,
    'SAPA-G, default': 6 * 256 * 32 + 4 * 25 * (32 + 256) + 256 + 5 * 32,
}
PARAMETERS = {
    'CARAFE': 256 * 64 + 64 + 9 * 64 * 100 + 100,
    'IndexNet': 32 * 256**2 + 8 * 256 + 4 * 256,
    'A2U': 38 * (256 + 1),
    'SAPA-I': 0,
    'SAPA-B': 2 * (256 * 32 + 32) + 2 * 2 * 256,
    'SAPA-G': 2 * 256 * 32 + 256,
    'SAPA-G, default': 3 * (256 * 32 + 32) + 257 + 2 * 2 * 256,
}
# Low-resolution pixels of all steps, and how many steps.
MODELS_OF_THE_PAPER = {
    'SegFormer-B1': (16**2 + 2 * 32**2 + 3 * 64**2, 6),
    'MaskFormer Swin-B': (20**2 + 40**2 + 80**2, 3),
    'Mask2Former Swin-B': (80**2, 1),
}


@pytest.fixture(scope='module')
def computed():
    """All tables: {(title of the table, *labels): {kind: cell}}."""
    found = {}
    for name in complexity.TABLES:
        for table in getattr(tables, name)():
            for labels, cells in table.rows:
                found[(table.title, *labels)] = {cell.kind: cell for cell in cells}
    return found


@pytest.fixture
def cell(computed):
    def find(kind: str, *labels: str):
        (found,) = [cells for row, cells in computed.items() if row[-len(labels) :] == labels]
        return found[kind]

    return find


@pytest.mark.parametrize('upsampler', PER_PIXEL)
@pytest.mark.parametrize('model', MODELS_OF_THE_PAPER)
def test_added_to_segmentation_models(cell, model, upsampler):
    pixels, steps = MODELS_OF_THE_PAPER[model]
    flops = cell('GFLOPs', model, upsampler)
    params = cell('M parameters', model, upsampler)
    assert flops.computed == pixels * PER_PIXEL[upsampler]
    assert params.computed == steps * PARAMETERS[upsampler]
    if upsampler == 'SAPA-G, default':
        assert flops.paper is params.paper is flops.agrees is None
        return
    assert params.agrees and params.difference == pytest.approx(0, abs=0.005)
    # The paper prints 0.63, its formula gives 0.637.
    truncated = (model, upsampler) == ('Mask2Former Swin-B', 'CARAFE')
    assert flops.agrees != truncated
    assert flops.difference == pytest.approx(0, abs=0.0074 if truncated else 0.005)


@pytest.mark.parametrize('upsampler', PARAMETERS)
def test_added_to_the_detector(cell, upsampler):
    found = cell('M parameters', 'Faster R-CNN R50', upsampler)
    assert found.computed == 3 * PARAMETERS[upsampler]
    assert found.agrees is (None if upsampler == 'SAPA-G, default' else True)


@pytest.mark.parametrize('upsampler', [*PER_PIXEL, 'IndexNet HIN', 'IndexNet M2O'])
def test_flops_per_low_resolution_pixel(computed, upsampler):
    kind = 'FLOPs per low-resolution pixel'
    found = {labels[-1]: cells[kind] for labels, cells in computed.items() if kind in cells}
    if upsampler == 'IndexNet':
        assert upsampler not in found
        return
    expected = PER_PIXEL | {'IndexNet HIN': PER_PIXEL['IndexNet'], 'IndexNet M2O': 4_457_472}
    assert found[upsampler].computed == expected[upsampler]
    assert found[upsampler].agrees is (None if upsampler == 'SAPA-G, default' else True)


@pytest.mark.parametrize(
    'variant, params',
    {
        'static-pw-cw': 102_544,
        'static-cw': 25_744,
        'hybrid-cw': 44_176,
        'hybrid-cs': 18_776,
        'dynamic-cw': 199_824,
        'dynamic-cs': 19_608,
        'dynamic-cs-d': 38_184,
    }.items(),
)
def test_parameters_of_a2u(cell, variant, params):
    assert cell('parameters', variant).computed == params
    assert cell('parameters', variant).agrees


@pytest.mark.parametrize(
    'upsampler, params, agrees',
    [
        ('CARAFE', 2816 * 64 + 4 * (64 + 57_600 + 100), True),
        ('IndexNet', 32 * (1024**2 + 512**2 + 256**2 + 64**2) + 12 * 1856, False),
        ('A2U', 38 * (1856 + 4), False),
        ('A2U, encoder_norm=True', 38 * (1856 + 4) + 2 * 2 * 1856, True),
        ('SAPA-B', 4672 * 32 + 2 * 4672 + 2 * 4 * 32, True),
        ('SAPA-G, default', 4672 * 32 + 2 * 4672 + 3 * 4 * 32 + 2816 * 33 + 4, True),
    ],
)
def test_added_to_the_depth_network(computed, upsampler, params, agrees):
    # Channels of all stages together: 1856 of the guides, 2816 of the decoder features.
    (title,) = {labels[0] for labels in computed if 'BTS' in labels[0]}
    found = computed[title, upsampler]['M parameters']
    assert found.computed == params
    assert found.agrees is agrees and (agrees or found.note)


@pytest.mark.parametrize(
    'upsampler, params',
    [
        ('CARAFE', 512 * 64 + 4 * (64 + 57_600 + 100)),
        ('A2U', 38 * (512 + 4)),
        ('SAPA-B', 2 * (512 * 32 + 4 * 32) + 4 * 512),
        ("SAPA-G, self_projection='key'", 2 * (512 * 32 + 4 * 32) + 4 * 512 + 512 + 4),
        ('SAPA-G, default', 3 * (512 * 32 + 4 * 32) + 4 * 512 + 512 + 4),
    ],
)
def test_added_to_the_matting_network(computed, upsampler, params):
    (title,) = {labels[0] for labels in computed if 'matting network' in labels[0]}
    found = computed[title, upsampler]['M parameters']
    assert found.computed == params
    assert found.agrees is (None if upsampler == 'SAPA-G, default' else True)


def test_no_other_cell_differs(computed):
    cells = {
        (*labels, kind): found for labels, row in computed.items() for kind, found in row.items()
    }
    differing = {labels[1:] for labels, found in cells.items() if found.agrees is False}
    assert differing == {
        ('Mask2Former Swin-B', 'CARAFE', 'GFLOPs'),
        ('IndexNet', 'M parameters'),
        ('A2U', 'M parameters'),
    }
    # Of the SAPA paper 2 x 18, 6, 7, 6 with A2U twice, and 4; and A2U's own 7.
    assert sum(found.paper is not None for found in cells.values()) == 66


def test_the_notes_on_the_depth_network_are_true():
    index_net = 32 * (1024**2 + 512**2 + 256**2 + 64**2) + 12 * 1856
    for base, difference in ((49.5315, '44.20'), (49.5314, '44.19')):
        total = round(base + index_net / 1e6, 2)
        assert f'{total - round(base, 2):.2f}' == difference
    a2u = {**tables.upsampler_cfg('a2u'), 'encoder_norm': True}
    printed = {(256,) * 6: '0.06', (256,) * 3: '0.03', (256,): '0.01', (64, 64, 128, 256): '0.02'}
    for stages, paper in printed.items():
        built = [build_upsampler(a2u, channels) for channels in stages]
        assert f'{sum(map(counter.count_parameters, built)) / 1e6:.2f}' == paper
        assert built[-1].flops((1, 1), (2, 2)) == PER_PIXEL['A2U']


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, TOOLS / 'complexity.py', *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_counts_models_prints_tables_and_writes_files(tmp_path, guided):
    files = tmp_path / 'found.json', tmp_path / 'found.md'
    config = GUIDED.relative_to(ROOT)
    options = '--table', 'coco', '--table', 'ops', '--json', files[0], '--markdown', files[1]
    result = run(config, *options)
    assert result.returncode == 0, result.stderr
    assert result.stderr == f'[1/1] {config} runs on the CPU\n'
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert files[1].read_text() == result.stdout

    record = json.loads(files[0].read_text())
    assert record['versions']['torch'] == torch.__version__
    (model,) = record['models']
    assert model['config'] == str(config) and model['shape'] == [3, 160, 160]
    assert (model['params'], model['flops']) == (guided.params, guided.flops)
    assert model['steps'][0] == {
        'host': 'decode_head',
        'name': 'c4_c3',
        'kind': 'SAPA (gated)',
        'sizes': [[[5, 5], [10, 10]]],
        'params': 6561,
        'flops': sapa_g_flops(5),
        'exact': True,
    }
    assert [table['table'] for table in record['tables']] == ['coco', *4 * ['ops']]
    row = record['tables'][0]['rows'][0]
    assert (row['model'], row['upsampler']) == ('Faster R-CNN R50', 'CARAFE')
    (found,) = row['cells']
    assert found == {
        'kind': 'M parameters',
        'computed': 222_444,
        'paper': '0.22',
        'note': None,
        'difference': pytest.approx(0.002444),
        'agrees': True,
    }

    text = re.sub(' +', ' ', result.stdout)
    assert f'## {config}\n\nEncoderDecoder, image 3 x 160 x 160\n' in text
    assert '| model | 565,233 | 0.1008 |' in text
    assert '| in it: upsampling | 39,366 | 0.03151 |' in text
    assert '| decode_head c4_c1 | SAPA (gated) | 20 x 20 | 40 x 40 | 6,561 | 0.008845 |' in text
    assert re.search(r'^Not counted, with how often they ran: .*gelu \(5\)', text, re.M)
    assert '| Faster R-CNN R50 | CARAFE | 0.2224 | 0.22 | +0.0024 | |' in text
    assert '| IndexNet | 44.1935 | 44.20 | -0.0065 | (1) |' in text
    assert '| IndexNet M2O | 4,457,472 | 4,457,472 | +0 | |' in text
    assert '| dynamic-cs | 19,608 | 20K | -0.39K | |' in text
    assert '| SAPA-G, default | 0.0779 | - | - | (1) |' in text
    assert "4 of 6 figures are the paper's, at its precision.\n\n(1) The network itself" in text


def test_a_difference_without_a_note_fails(monkeypatch, tmp_path, capsys):
    cells = [tables.Cell('GFLOPs', 5 * 10**9, paper) for paper in ('5.00', '5.01')]
    rows = [((name,), [found]) for name, found in zip(('right', 'wrong'), cells, strict=True)]
    monkeypatch.setattr(tables, 'ops', lambda: [tables.Table('T', ('upsampler',), rows)])
    out = tmp_path / 'found.json'
    assert complexity.main(['--table', 'ops', '--json', str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.err == 'wrong: GFLOPs differ from the paper\n'
    assert '| wrong     | 5.0000 |  5.01 |    -0.0100 | differs |' in printed.out
    (table,) = json.loads(out.read_text())['tables']
    assert [row['cells'][0]['agrees'] for row in table['rows']] == [True, False]


def test_help():
    result = run('--help')
    assert result.returncode == 0
    assert '--table {ade20k,coco,ops}' in result.stdout
    assert 'tools/' not in result.stderr and 'complexity.py --table ade20k' in result.stdout


CONFIGS = {
    'broken.py': 'model = (',
    'scopeless.py': "model = dict(type='A')",
    'modelless.py': "default_scope = 'mmseg'",
    'sizeless.py': "default_scope = 'mmseg'\nmodel = dict(type='A')",
    'misfit.py': f"_base_ = '{GUIDED}'\nmodel = dict(decode_head=dict(in_channels=[8, 8, 8, 8]))",
    'unknown.py': "default_scope = 'mmseg'\ncrop_size = (8, 8)\nmodel = dict(type='Nobody')",
}


@pytest.fixture
def configs(tmp_path):
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'expected a CONFIG or --table, got neither'),
        (['--table', 'ops', '--shape', '8', '8'], 'argument --shape: expected a CONFIG with it'),
        (['--table', 'imagenet'], "argument --table: invalid choice: 'imagenet'"),
        (['a.py', '--shape', '8'], 'argument --shape: expected 2 arguments'),
        (['a.py', '--shape', '8', '0'], 'argument --shape: expected a positive int, got 0'),
        (['a.py', '--shape', '8', 'x'], 'argument --shape: expected a positive int, got x'),
        (['a.py'], "CONFIG: no file 'a.py'"),
        (['mmsegg::a.py'], 'CONFIG: expected mmseg or mmdet before "::"'),
        (['mmseg::unet/a.py'], "CONFIG: mmseg installs no config 'unet/a.py'"),
        (['broken.py'], 'CONFIG: broken.py cannot be read: SyntaxError'),
        (['scopeless.py'], "CONFIG: expected default_scope 'mmseg' or 'mmdet' in scopeless.py"),
        (['modelless.py'], 'CONFIG: expected a model in modelless.py, got none'),
        (['sizeless.py'], 'CONFIG: sizeless.py names no size of its images; give --shape H W'),
        (['unknown.py', '--json', 'no/a.json'], 'argument --json: expected a file in an existing'),
        (['unknown.py', '--markdown', '.'], 'argument --markdown: expected a file in an existing'),
        ([str(GUIDED), 'a.py', '--json', 'a.json'], "CONFIG: no file 'a.py'"),
    ],
)
def test_bad_input_ends_before_any_work(configs, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(configs)
    with pytest.raises(SystemExit) as stop:
        complexity.main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert f': error: {message}' in printed.err and not printed.out
    assert {path.name for path in configs.iterdir()} == set(CONFIGS)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['unknown.py'], 'unknown.py cannot be built, or cannot run at 8 x 8: KeyError: '),
        (['misfit.py'], 'misfit.py cannot be built, or cannot run at 160 x 160: RuntimeError: '),
    ],
)
def test_a_model_that_fails_ends_in_a_sentence(configs, monkeypatch, arguments, message):
    monkeypatch.chdir(configs)
    with pytest.raises(SystemExit) as stop:
        complexity.main([*arguments, '--json', 'a.json', '--markdown', 'a.md'])
    assert message in stop.value.code and '\n' not in stop.value.code
    assert {path.name for path in configs.iterdir()} == set(CONFIGS)
