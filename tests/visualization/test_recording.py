"""What `record_upsampling` sees: features, and the kernels that the operators used."""

import copy
import math

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from sapa_mm.ops import assemble, reference
from sapa_mm.upsamplers import build_upsampler
from sapa_mm.visualization import find_upsamplers, record_upsampling, select_upsamplers

NORMALIZATIONS = ('softmax', 'sigmoid', 'relu', 'softplus', 'none')
H_OF = {
    'softmax': np.exp,
    'sigmoid': lambda s: 1 / (1 + np.exp(-s)),
    'relu': lambda s: np.maximum(s, 0),
    'softplus': lambda s: np.log1p(np.exp(s)),
}
EPS = {'softmax': 0.0, 'sigmoid': 1e-6, 'relu': 1e-6, 'softplus': 1e-6}


class Host(nn.Module):
    """Upsamples along its steps, as hosts do."""

    def __init__(self, **cfgs: dict):
        super().__init__()
        built = {name: build_upsampler(cfg, 8) for name, cfg in cfgs.items()}
        self.upsamplers = nn.ModuleDict(built)

    def forward(self, x, *guides):
        for upsampler, guide in zip(self.upsamplers.values(), guides, strict=True):
            x = upsampler(x, guide)
        return x


def record(host, *inputs):
    with record_upsampling(host) as recording, torch.no_grad():
        out = host(*inputs)
    return out, recording.steps


def loop_weights(query, key, size, normalization, temperature, border):
    """The weights (K*K, Hg, Wg) of one image, pixel by pixel and position by position."""
    query, key = query.numpy(), key.numpy()
    (height, width), (low_height, low_width) = query.shape[1:], key.shape[1:]
    radius = size // 2
    weights = np.zeros((size * size, height, width))
    for i in range(height):
        for j in range(width):
            for p in range(size * size):
                y = i * low_height // height + p // size - radius
                x = j * low_width // width + p % size - radius
                inside = 0 <= y < low_height and 0 <= x < low_width
                if border == 'replicate':
                    y, x = min(max(y, 0), low_height - 1), min(max(x, 0), low_width - 1)
                    inside = True
                score = query[:, i, j] @ key[:, y, x] / temperature if inside else 0.0
                if normalization == 'none':
                    weights[p, i, j] = score
                elif inside or border != 'mask':
                    weights[p, i, j] = H_OF[normalization](score)
    if normalization != 'none':
        weights /= weights.sum(0) + EPS[normalization]
    return weights


@pytest.mark.parametrize('border', ['zero', 'mask', 'replicate'])
@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_kernels_of_sapa_are_those_of_a_loop(normalization, border):
    options = dict(kernel_size=3, normalization=normalization, temperature=0.5, border=border)
    host = Host(c2_c1=dict(type='SAPA', similarity='gated', **options))
    for parameter in host.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, guide = torch.randn(2, 8, 4, 5), torch.randn(2, 8, 9, 11)
    out, steps = record(host, x, guide)
    step = steps['c2_c1']
    assert step.kernels.shape == (2, 1, 9, 9, 11)
    assert step.kernel_size == 3
    exact = copy.deepcopy(host.upsamplers['c2_c1']).double()
    with torch.no_grad():
        query, key = exact.embed(x.double(), guide.double())
    for image in range(2):
        expected = loop_weights(query[image], key[image], 3, normalization, 0.5, border)
        got = step.kernels[image, 0].numpy()
        np.testing.assert_allclose(got, expected, atol=5e-6 * np.abs(expected).max())
    if normalization == 'softmax':
        torch.testing.assert_close(step.kernels.sum(2), torch.ones(2, 1, 9, 11))
    if border != 'replicate':  # whose values outside the image assemble does not know
        assembled = reference.assemble(step.kernels[:, 0].double(), x.double(), kernel_size=3)
        assert (assembled - out).abs().max() < 5e-6 * out.abs().max()


@pytest.mark.parametrize('similarity', ['inner', 'bilinear', 'plain'])
def test_kernels_of_every_similarity_assemble_the_output(similarity):
    host = Host(c2_c1=dict(type='SAPA', similarity=similarity))
    for parameter in host.parameters():
        nn.init.normal_(parameter)
    x, guide = torch.randn(1, 8, 6, 5), torch.randn(1, 8, 12, 10)
    out, steps = record(host, x, guide)
    step = steps['c2_c1']
    assert step.upsampler == f'SAPA ({similarity})'
    # They are far from uniform, or any kernels would do.
    assert step.kernels.amax(2).mean() > 0.2
    torch.testing.assert_close(assemble(step.kernels[:, 0], x), out)


def test_kernels_of_carafe():
    host = Host(c2_c1=dict(type='CARAFE', groups=2))
    upsampler = host.upsamplers['c2_c1']
    nn.init.normal_(upsampler.content_encoder.weight)
    x, guide = torch.randn(2, 8, 4, 5), torch.randn(2, 8, 7, 9)
    out, steps = record(host, x, guide)
    kernels = steps['c2_c1'].kernels
    # It is the size that CARAFE upsamples to, before it crops.
    assert kernels.shape == (2, 2, 25, 8, 10)
    assert torch.equal(kernels.flatten(1, 2), upsampler.predict_kernels(x))
    torch.testing.assert_close(kernels.sum(2), torch.ones(2, 2, 8, 10))
    for group in range(2):
        channels = slice(4 * group, 4 * group + 4)
        assembled = reference.assemble(kernels[:, group], x[:, channels])[..., :7, :9]
        torch.testing.assert_close(assembled, out[:, channels])


def test_kernels_of_fade():
    host = Host(c2_c1=dict(type='FADE'))
    upsampler = host.upsamplers['c2_c1']
    nn.init.normal_(upsampler.content_encoder.weight)
    x, guide = torch.randn(2, 8, 4, 5), torch.randn(2, 8, 7, 9)
    out, steps = record(host, x, guide)
    kernels = steps['c2_c1'].kernels
    assert torch.equal(kernels[:, 0], upsampler.predict_kernels(x, guide))
    # They make what the gate mixes with the guide.
    assembled = reference.assemble(kernels[:, 0], x)
    torch.testing.assert_close(upsampler.mix(x, guide, assembled), out)


@pytest.mark.parametrize('kind', ['A2U', 'SoftClusteringUpsampler'])
def test_kernels_of_others_assemble_the_output(kind):
    host = Host(c2_c1=dict(type=kind))
    x, guide = torch.randn(1, 8, 4, 5), torch.randn(1, 8, 8, 10)
    out, steps = record(host, x, guide)
    kernels = steps['c2_c1'].kernels
    size = math.isqrt(kernels.shape[2])
    assert size == steps['c2_c1'].kernel_size == 3
    torch.testing.assert_close(reference.assemble(kernels[:, 0], x, kernel_size=3), out)


@pytest.mark.parametrize(
    ('kind', 'described'),
    [
        ('nearest', 'nearest'),
        ('bilinear', 'bilinear'),
        ('deconv', 'ConvTranspose2d'),
        ('pixel_shuffle', 'PixelShufflePack'),
        ('IndexNet', 'IndexNet (hin)'),
        ('DySample', 'DySample'),
        ('MaxUnpooling', 'MaxUnpooling'),
    ],
)
def test_what_assembles_no_window_has_no_kernels(kind, described):
    host = Host(c2_c1=dict(type=kind)).eval()
    x, guide = torch.randn(2, 8, 4, 5), torch.randn(2, 8, 8, 10)
    out, steps = record(host, x, guide)
    step = steps['c2_c1']
    assert step.kernels is None and step.kernel_size is None
    assert step.upsampler == described
    assert torch.equal(step.x, x) and torch.equal(step.guide, guide)
    assert torch.equal(step.output, out)


class Twice(nn.Module):
    """Assembles two times, so that no kernel makes its output of its input."""

    def forward(self, x, guide):
        weights = guide.softmax(1)
        return assemble(weights, assemble(weights, x, kernel_size=3), kernel_size=3)


def test_two_assemblies_are_no_kernel():
    host = Host()
    host.upsamplers['c2_c1'] = Twice()
    _, steps = record(host, torch.randn(1, 8, 4, 4), torch.randn(1, 9, 4, 4))
    assert steps['c2_c1'].kernels is None


def test_steps_in_order_and_the_first_call_of_each():
    host = Host(c3_c2=dict(type='SAPA'), c2_c1=dict(type='CARAFE'))
    x, guides = torch.randn(1, 8, 2, 3), [torch.randn(1, 8, 2 * n, 3 * n) for n in (2, 4)]
    with record_upsampling(host) as recording, torch.no_grad():
        host(x, *guides)
        host(x + 1, *guides)
    host(x + 2, *guides)
    steps = recording.steps
    assert list(steps) == ['c3_c2', 'c2_c1']
    assert torch.equal(steps['c3_c2'].x, x)
    assert torch.equal(steps['c2_c1'].x, steps['c3_c2'].output)
    assert [step.kernels.shape[3:] for step in steps.values()] == [(4, 6), (8, 12)]
    for upsampler in host.upsamplers.values():
        assert not upsampler._forward_hooks and not upsampler._forward_pre_hooks


def test_by_name_with_an_encoding_and_under_autocast():
    host = Host(c2_c1=dict(type='A2U'), c3_c1=dict(type='SAPA'))
    paired, sapa = host.upsamplers.values()
    x, guide = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 8, 8)
    with record_upsampling(host) as recording, torch.no_grad():
        paired(guide=guide, x=x, encoding=paired.encode(guide))
        with torch.autocast('cpu', torch.bfloat16):
            sapa(x, guide)
    assert torch.equal(recording.steps['c2_c1'].guide, guide)
    kernels = recording.steps['c3_c1'].kernels
    assert kernels.dtype == torch.float32
    torch.testing.assert_close(kernels.sum(2), torch.ones(1, 1, 8, 8))


def test_recording_in_training_leaves_the_gradients():
    host = Host(c2_c1=dict(type='SAPA'))
    x, guide = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 8, 8)
    host(x, guide).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in host.parameters()]
    host.zero_grad()
    with record_upsampling(host) as recording:
        host(x, guide).square().sum().backward()
    for parameter, grad in zip(host.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, grad)
    step = recording.steps['c2_c1']
    assert not step.output.requires_grad and not step.kernels.requires_grad


def test_steps_of_one_name_get_their_hosts():
    model = nn.ModuleDict(
        dict(
            neck=Host(c4_c3=dict(type='nearest'), c3_c2=dict(type='nearest')),
            head=Host(c3_c2=dict(type='bilinear')),
        )
    )
    assert list(find_upsamplers(model)) == ['c4_c3', 'neck.c3_c2', 'head.c3_c2']
    assert select_upsamplers(model, ['head.c3_c2', 'c4_c3']) == {
        'c4_c3': model['neck'].upsamplers['c4_c3'],
        'head.c3_c2': model['head'].upsamplers['c3_c2'],
    }
    with pytest.raises(ValueError, match=r"steps: .*c4_c3, neck\.c3_c2.*got 'c3_c2'"):
        select_upsamplers(model, ['c3_c2'])


@pytest.mark.parametrize('model', [nn.Sequential(nn.ReLU()), Host()], ids=['none', 'empty'])
def test_a_model_without_upsamplers(model):
    with (
        pytest.raises(ValueError, match=f'model: .*upsamplers.*got {type(model).__name__}'),
        record_upsampling(model),
    ):
        raise AssertionError('not reached')


def test_segmentors_predict_whole_images_meanwhile():
    host = Host(c2_c1=dict(type='nearest'))
    host.test_cfg = ConfigDict(mode='slide')
    with pytest.raises(RuntimeError, match='mine'), record_upsampling(host):
        assert host.test_cfg.mode == 'whole'
        raise RuntimeError('mine')
    assert host.test_cfg.mode == 'slide'
