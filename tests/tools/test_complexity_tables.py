"""Everything expected here is computed by hand."""

import pytest
from torch import nn

from sapa_mm.tools.complexity import tables
from sapa_mm.tools.complexity.command import TABLES
from sapa_mm.tools.complexity.count import count_parameters
from sapa_mm.tools.presets import upsampler_config
from sapa_mm.upsamplers import build_upsampler

# These are multiply-adds per low-resolution pixel at C = 256, and parameters of one upsampler.
PER_PIXEL = {
    'CARAFE': 256 * 64 + 36 * 25 * 64 + 4 * 25 * 256,
    'IndexNet': 32 * 256**2 + 12 * 256,
    'A2U': 73 * 256 + 4 * 9 + 4 * 9 * 256,
    'SAPA-I': 8 * 25 * 256,
    'SAPA-B': 5 * 256 * 32 + 4 * 25 * (32 + 256),
    'SAPA-G': 5 * 256 * 32 + 4 * 25 * (32 + 256) + 256 + 5 * 32,
    'SAPA-G, default': 6 * 256 * 32 + 4 * 25 * (32 + 256) + 256 + 5 * 32,
    # Both resolutions have the compression and the encoder, x the gate, and the guide the rest.
    'FADE': 5 * (256 * 64 + 9 * 64 * 25) + 256 + 4 * (25 + 2) * 256,
    'FADE-Lite': 5 * (256 * 25 + 9 * 25) + 256 + 4 * (25 + 2) * 256,
    'DySample': 32 * 256 + 4 * 4 * 256,
    'DySample+': 2 * 32 * 256 + 32 + 4 * 4 * 256,
}
PARAMETERS = {
    'CARAFE': 256 * 64 + 64 + 9 * 64 * 100 + 100,
    'IndexNet': 32 * 256**2 + 8 * 256 + 4 * 256,
    'A2U': 38 * (256 + 1),
    'SAPA-I': 0,
    'SAPA-B': 2 * (256 * 32 + 32) + 2 * 2 * 256,
    'SAPA-G': 2 * 256 * 32 + 256,
    'SAPA-G, default': 3 * (256 * 32 + 32) + 257 + 2 * 2 * 256,
    'FADE': 47_514,
    'FADE-Lite': 13_332,
    'DySample': 8_224,
    'DySample+': 16_416,
}
# The papers have no cells of these.
WITHOUT_CELLS = ('SAPA-G, default', *tables.OTHERS)
# Every model has so many low-resolution pixels in all steps, and so many steps.
MODELS_OF_THE_PAPER = {
    'SegFormer-B1': (16**2 + 2 * 32**2 + 3 * 64**2, 6),
    'MaskFormer Swin-B': (20**2 + 40**2 + 80**2, 3),
    'Mask2Former Swin-B': (80**2, 1),
}


@pytest.fixture(scope='module')
def computed():
    """Compute all tables: {(title of the table, *labels): {kind: cell}}."""
    found = {}
    for name in TABLES:
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
    if upsampler in WITHOUT_CELLS:
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
    assert found.agrees is (None if upsampler in WITHOUT_CELLS else True)


@pytest.mark.parametrize('upsampler', [*PER_PIXEL, 'IndexNet HIN', 'IndexNet M2O'])
def test_flops_per_low_resolution_pixel(computed, upsampler):
    kind = 'FLOPs per low-resolution pixel'
    found = {labels[-1]: cells[kind] for labels, cells in computed.items() if kind in cells}
    if upsampler == 'IndexNet':
        assert upsampler not in found
        return
    expected = PER_PIXEL | {'IndexNet HIN': PER_PIXEL['IndexNet'], 'IndexNet M2O': 4_457_472}
    assert found[upsampler].computed == expected[upsampler]
    assert found[upsampler].agrees is (None if upsampler in WITHOUT_CELLS else True)


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
    # All stages together have 1856 channels of the guides and 2816 of the decoder features.
    (title,) = {labels[0] for labels in computed if 'BTS' in labels[0]}
    found = computed[title, upsampler]['M parameters']
    assert found.computed == params
    assert found.agrees is agrees and (agrees or found.note)


def test_the_paper_counts_a_classifier_in_the_depth_network(computed):
    (found,) = [row for labels, row in computed.items() if labels[-1].endswith('whole network')]
    # ResNet-50 without its classifier, the decoder, and the classifier.
    assert found['M parameters'].computed == 23_508_032 + 23_973_936 + 2_049_000
    assert found['M parameters'].agrees


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
    # The SAPA paper has 2 x 18, 6, 7, 7 with A2U twice, and 4; A2U's own paper has 7.
    assert sum(found.paper is not None for found in cells.values()) == 67


def test_the_notes_on_the_depth_network_are_true():
    index_nets = [
        build_upsampler(upsampler_config('index-net'), *channels)
        for channels in ((2048, 1024), (512, 512), (128, 256), (128, 64))
    ]
    convs = [m for net in index_nets for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.bias is None for conv in convs)
    biases = sum(conv.out_channels for conv in convs)
    assert sum(map(count_parameters, index_nets)) + biases == 44_197_264
    a2u = {**upsampler_config('a2u'), 'encoder_norm': True}
    printed = {(256,) * 6: '0.06', (256,) * 3: '0.03', (256,): '0.01', (64, 64, 128, 256): '0.02'}
    for stages, paper in printed.items():
        built = [build_upsampler(a2u, channels) for channels in stages]
        assert f'{sum(map(count_parameters, built)) / 1e6:.2f}' == paper
        assert built[-1].flops((1, 1), (2, 2)) == PER_PIXEL['A2U']
