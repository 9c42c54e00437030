"""The hosts declare what they replace and what they refuse."""

import inspect

import mmdet.registry
import mmseg.registry
import pytest

from sapa_mm.upsamplers import GuidedHost, GuidedType, guided_hosts

REGISTRIES = {'mmseg': mmseg.registry.MODELS, 'mmdet': mmdet.registry.MODELS}
HOSTS = {
    'SegformerHead': GuidedType('GuidedSegformerHead', ('interpolate_mode',)),
    'FPNHead': GuidedType('GuidedFPNHead', ()),
    'UPerHead': GuidedType('GuidedUPerHead', ()),
    'FPN': GuidedType('GuidedFPN', ()),
    'PAFPN': GuidedType('GuidedPAFPN', ()),
    'FPN_CARAFE': GuidedType('GuidedFPN_CARAFE', ()),
    'YOLOXPAFPN': GuidedType('GuidedYOLOXPAFPN', ()),
    'CSPNeXtPAFPN': GuidedType('GuidedCSPNeXtPAFPN', ()),
    'PixelDecoder': GuidedType('GuidedPixelDecoder', ()),
    'TransformerEncoderPixelDecoder': GuidedType('GuidedTransformerEncoderPixelDecoder', ()),
    'MSDeformAttnPixelDecoder': GuidedType('GuidedMSDeformAttnPixelDecoder', ()),
}
# The frameworks have no BTS, SegNet or matting, so that these hosts stand for themselves.
OWN = {
    'GuidedBTSHead': GuidedType('GuidedBTSHead', ()),
    'SegNetHead': GuidedType('SegNetHead', ()),
    'GuidedMattingNet': GuidedType('GuidedMattingNet', (), pairs=True),
}
REFUSED = [(stock, name) for stock, host in HOSTS.items() for name in host.refuses]


def registered(stock):
    """The stock type and its host, in every framework that has them."""
    return {
        framework: (registry.module_dict[stock], registry.module_dict[HOSTS[stock].name])
        for framework, registry in REGISTRIES.items()
        if stock in registry.module_dict
    }


def test_the_whole_table():
    assert guided_hosts() == HOSTS | OWN


def test_the_table_is_the_askers_own():
    guided_hosts().clear()
    assert guided_hosts() == HOSTS | OWN


@pytest.mark.parametrize('stock', list(HOSTS))
def test_hosts_stand_in_for_the_types_of_either_framework(stock):
    found = registered(stock)
    where = {'FPN': ['mmseg', 'mmdet']}.get(stock, ['mmseg' if 'Head' in stock else 'mmdet'])
    assert list(found) == where
    for plain, guided in found.values():
        assert plain.__name__ == stock == guided.replaces
        assert issubclass(guided, plain) and issubclass(guided, GuidedHost)
        assert guided.refuses == HOSTS[stock].refuses


@pytest.mark.parametrize(('stock', 'argument'), REFUSED)
def test_what_a_host_refuses_is_refused(stock, argument):
    for plain, guided in registered(stock).values():
        default = inspect.signature(plain).parameters[argument].default
        with pytest.raises(ValueError, match=rf'{argument}: .*upsample_cfg.* got {default!r}'):
            guided(upsample_cfg=dict(type='SAPA'), **{argument: default})


def test_a_subclass_is_not_listed_and_refuses_as_its_parent():
    class Stock:
        def __init__(self, width, mode='linear'):
            self.width = width

    class Guided(GuidedHost, Stock):
        refuses = ('mode',)

    class Mine(Guided):
        pass

    assert guided_hosts() == HOSTS | OWN
    assert Mine(3).width == Mine(width=3).width == 3
    with pytest.raises(ValueError, match=r'mode: .* got 4'):
        Mine(3, mode=4)


@pytest.mark.parametrize(('name', 'refused'), [('Other', ()), ('GuidedPAFPN', ('norm_cfg',))])
def test_two_hosts_cannot_replace_one_type(name, refused):
    with pytest.raises(TypeError, match=r'replaces: .* in place of PAFPN than .*GuidedPAFPN'):
        type(name, (GuidedHost,), dict(replaces='PAFPN', refuses=refused))
    assert guided_hosts() == HOSTS | OWN
