"""Where a model's upsamplers are, and what they are called."""

import pytest
from torch import nn

from sapa_mm.upsamplers import (
    build_upsampler,
    describe_upsampler,
    find_upsamplers,
    iter_upsamplers,
)


class Host(nn.Module):
    """Has upsamplers, as hosts do."""

    def __init__(self, *steps: str):
        super().__init__()
        self.upsamplers = nn.ModuleDict({step: nn.Identity() for step in steps})


@pytest.mark.parametrize(
    ('cfg', 'expected'),
    [
        (dict(type='SAPA', similarity='gated'), 'SAPA (gated)'),
        (dict(type='SAPA', similarity='inner'), 'SAPA (inner)'),
        (dict(type='IndexNet', variant='m2o'), 'IndexNet (m2o)'),
        (dict(type='A2U', mode='hybrid'), 'A2U (hybrid)'),
        (dict(type='CARAFE'), 'CARAFE'),
        (dict(type='DySample'), 'DySample'),
        (dict(type='FADELite'), 'FADELite'),
        (dict(type='SoftClusteringUpsampler'), 'SoftClusteringUpsampler'),
        (dict(type='MaxUnpooling'), 'MaxUnpooling'),
        (dict(type='nearest'), 'nearest'),
        (dict(type='bilinear', align_corners=False), 'bilinear'),
        (dict(type='deconv'), 'ConvTranspose2d'),
        (dict(type='pixel_shuffle'), 'PixelShufflePack'),
    ],
)
def test_descriptions_have_the_variant(cfg, expected):
    assert describe_upsampler(build_upsampler(cfg, 8)) == expected


def test_a_users_module_is_its_class():
    class Mine(nn.Module):
        mode = 3

    assert describe_upsampler(Mine()) == 'Mine'


def test_hosts_and_steps_in_the_order_of_the_model():
    model = nn.Module()
    model.neck = Host('c4_c3', 'c3_c2')
    model.head = nn.Sequential(nn.Conv2d(1, 1, 1), Host('c3_c2'))
    model.other = nn.Module()
    model.other.upsamplers = [nn.Identity()]  # a list is another matter
    found = list(iter_upsamplers(model))
    assert [(path, step) for path, step, _ in found] == [
        ('neck', 'c4_c3'),
        ('neck', 'c3_c2'),
        ('head.1', 'c3_c2'),
    ]
    assert found[2][2] is model.head[1].upsamplers['c3_c2']
    assert list(find_upsamplers(model)) == ['c4_c3', 'neck.c3_c2', 'head.1.c3_c2']
    assert find_upsamplers(model)['neck.c3_c2'] is found[1][2]


def test_a_host_by_itself_has_an_empty_path():
    host = Host('c2_c1')
    assert [item[:2] for item in iter_upsamplers(host)] == [('', 'c2_c1')]
    assert find_upsamplers(host) == {'c2_c1': host.upsamplers['c2_c1']}
    assert find_upsamplers(nn.Conv2d(1, 1, 1)) == {}
