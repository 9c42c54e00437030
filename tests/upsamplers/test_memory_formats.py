"""Whatever an upsampler crops or interpolates, its result lies in memory as x does."""

import pytest
import torch
from testing_utils import make_tensor
from upsampler_oracles import randomize

from sapa_mm.upsamplers import build_upsampler
from sapa_mm.upsamplers.build import SINGLE_INPUT, registered_upsamplers

FORMATS = {'nchw': torch.contiguous_format, 'channels_last': torch.channels_last}
#: Sizes of x and the guide: cropped, interpolated, doubled and equal.
SIZES = [((7, 9), (13, 17)), ((7, 9), (14, 17)), ((4, 5), (11, 13)), ((4, 5), (8, 10))]
SIZES += [((5, 5), (5, 5))]
KINDS = [*registered_upsamplers(), *SINGLE_INPUT]
#: What has a ratio of its own, whose result is cropped.
FIXED = ['CARAFE', 'DySample', 'deconv', 'pixel_shuffle']


def make(kind):
    return randomize(build_upsampler(dict(type=kind), 8)).double()


def inputs(low, high, x_format, guide_format):
    return (
        make_tensor(2, 8, *size, dtype=torch.float64).contiguous(memory_format=FORMATS[name])
        for size, name in ((low, x_format), (high, guide_format))
    )


@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize('guide_format', FORMATS)
@pytest.mark.parametrize('x_format', FORMATS)
@pytest.mark.parametrize('kind', KINDS)
def test_results_lie_as_x_does(kind, x_format, guide_format, sizes):
    module = make(kind)
    out = module(*inputs(*sizes, x_format, guide_format))
    assert out.shape == (2, 8, *sizes[1])
    assert out.is_contiguous(memory_format=FORMATS[x_format])
    # With more channels and pixels than one no tensor is both.
    assert out.is_contiguous() == (x_format == 'nchw')


@pytest.mark.parametrize('kind', FIXED)
def test_weights_in_channels_last_do_not_decide(kind):
    module = make(kind).to(memory_format=torch.channels_last)
    for x_format, memory_format in FORMATS.items():
        for sizes in SIZES:
            out = module(*inputs(*sizes, x_format, x_format))
            assert out.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('x_format', FORMATS)
@pytest.mark.parametrize('kind', FIXED)
def test_compiled_results_lie_as_x_does(kind, x_format):
    torch._dynamo.reset()
    module = make(kind)
    compiled = torch.compile(module, backend='aot_eager', fullgraph=True, dynamic=True)
    for low, high in (((7, 9), (13, 17)), ((10, 11), (19, 22))):
        x, guide = inputs(low, high, x_format, x_format)
        out = compiled(x, guide)
        torch.testing.assert_close(out, module(x, guide))
        assert out.is_contiguous(memory_format=FORMATS[x_format])


@pytest.mark.parametrize('kind', FIXED)
def test_a_copy_is_made_where_there_is_something_to_crop_alone(kind):
    module = make(kind)
    x, guide = inputs((4, 5), (8, 10), 'nchw', 'nchw')
    out = module(x, guide)
    assert out.untyped_storage().nbytes() == out.numel() * out.element_size()
    cropped = module(x, guide[:, :, :7, :9])
    assert torch.equal(cropped, out[:, :, :7, :9])
    assert cropped.untyped_storage().nbytes() == cropped.numel() * cropped.element_size()
