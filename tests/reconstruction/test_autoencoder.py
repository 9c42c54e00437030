"""The architecture, its guides, and the pairs of down- and upsampling."""

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from sapa_mm.reconstruction import Autoencoder

CONV, MAX_POOL, PAIRED = (dict(type=kind) for kind in ('conv', 'max_pool', 'paired'))
NEAREST = dict(type='nearest')


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_by_hand():
    # They are 3x3 convolutions without bias, two numbers a channel of the batch norms, and the last
    # layer.
    convs = 1 * 32 + 32 * 64 + 64 * 128 + 128 * 256 + 256 * 128 + 128 * 64 + 64 * 32
    norms = 32 + 64 + 128 + 256 + 128 + 64 + 32
    bare = 9 * convs + 2 * norms + 9 * 32 + 1
    assert bare == 776_129
    assert count(Autoencoder(MAX_POOL, NEAREST)) == bare
    # D is a convolution from C to C channels, with a batch norm.
    downs = 9 * (32**2 + 64**2 + 128**2) + 2 * (32 + 64 + 128)
    assert count(Autoencoder(CONV, NEAREST)) == bare + downs == 970_113


def test_forward_modes():
    model = MODELS.build(dict(type='Autoencoder', downsample_cfg=CONV, upsample_cfg=NEAREST)).eval()
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        output = model(image)
        loss = model(image, mode='loss')
        predictions = model(image, mode='predict')
    assert output.shape == (2, 1, 32, 32)
    assert loss.keys() == {'loss'}
    torch.testing.assert_close(loss['loss'], (output - image).abs().mean())
    assert len(predictions) == 2
    for i, prediction in enumerate(predictions):
        assert torch.equal(prediction['pred'], output[i])
        assert torch.equal(prediction['target'], image[i])
    with pytest.raises(ValueError, match=r"mode: .*got 'train'"):
        model(image, mode='train')


@pytest.mark.parametrize('downsample', [CONV, MAX_POOL], ids=lambda cfg: cfg['type'])
def test_odd_sizes(downsample):
    model = Autoencoder(downsample, dict(type='SAPA'), in_channels=3, channels=(4, 8, 16))
    assert model(torch.rand(2, 3, 33, 22)).shape == (2, 3, 33, 22)


class Pair(nn.Module):
    """Insists on the guide and the encoding that it made of it, and records their shapes."""

    shapes: list  # of x and guide, in the order of the upsampling

    def __init__(self, in_channels: int, guide_channels: int):
        super().__init__()
        self.channels = in_channels, guide_channels

    def encode(self, guide: Tensor) -> object:
        self.guide, self.encoding = guide, object()
        return self.encoding

    def downsample(self, guide: Tensor, encoding: object) -> Tensor:
        assert guide is self.guide
        assert encoding is self.encoding
        return guide[:, :, ::2, ::2]

    def forward(self, x: Tensor, guide: Tensor, encoding: object) -> Tensor:
        assert guide is self.guide
        assert encoding is self.encoding
        assert self.channels == (x.shape[1], guide.shape[1])
        Pair.shapes.append((tuple(x.shape[1:]), tuple(guide.shape[1:])))
        return F.interpolate(x, guide.shape[2:])


def test_a_pair_shares_guide_and_encoding():
    Pair.shapes = []
    model = Autoencoder(PAIRED, dict(type=Pair))
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 1, 32, 32)
    assert Pair.shapes == [
        ((128, 4, 4), (128, 8, 8)),
        ((64, 8, 8), (64, 16, 16)),
        ((32, 16, 16), (32, 32, 32)),
    ]
    assert count(model) == 776_129  # no D of its own


def test_without_a_pair_the_guide_is_what_is_downsampled():
    seen = []

    class Recorder(nn.Module):
        def __init__(self, in_channels, guide_channels):
            super().__init__()

        def forward(self, x, guide):
            seen.append(guide)
            return F.interpolate(x, guide.shape[2:])

    model = Autoencoder(CONV, dict(type=Recorder))
    downsampled = []
    for module in model.downsamples:
        module.register_forward_pre_hook(lambda _, inputs: downsampled.append(inputs[0]))
    model(torch.rand(2, 1, 32, 32))
    assert [guide.shape[1] for guide in seen] == [128, 64, 32]
    assert all(a is b for a, b in zip(seen, reversed(downsampled), strict=True))


def test_max_unpooling_is_pytorchs():
    model = Autoencoder(PAIRED, dict(type='MaxUnpooling'))
    image = torch.rand(2, 1, 32, 32)
    x, indices = image, []
    for block in model.encoder[:3]:
        x, index = F.max_pool2d(block(x), 2, return_indices=True)
        indices.append(index)
    x = model.encoder[3](x)
    for block in model.decoder:
        x = F.max_unpool2d(block(x), indices.pop(), 2)
    torch.testing.assert_close(model(image), model.output(x))


def test_carafe_of_one_point_is_nearest():
    image = torch.rand(2, 1, 32, 32)
    carafe = Autoencoder(CONV, dict(type='CARAFE', kernel_size=1))
    nearest = Autoencoder(CONV, NEAREST)
    weights = {k: v for k, v in carafe.state_dict().items() if not k.startswith('upsamplers')}
    nearest.load_state_dict(weights)
    torch.testing.assert_close(carafe(image), nearest(image))


def test_one_step_may_differ():
    model = Autoencoder(CONV, NEAREST, step_cfgs=dict(c2_c1=dict(type='SAPA')))
    kinds = {name: type(module).__name__ for name, module in model.upsamplers.items()}
    assert kinds.pop('c2_c1') == 'SAPA'
    assert kinds == dict.fromkeys(('c4_c3', 'c3_c2'), 'SingleInputUpsampler')


@pytest.mark.parametrize(
    'upsample',
    [NEAREST, dict(type='SAPA'), dict(type='CARAFE'), dict(type='A2U')],
    ids=lambda cfg: cfg['type'],
)
def test_what_cannot_downsample_is_no_pair(upsample):
    message = r"downsample_cfg: 'paired' expected .*\(A2U, IndexNet, MaxUnpooling, .*got c2_c1"
    with pytest.raises(ValueError, match=message):
        Autoencoder(PAIRED, upsample)


def test_a2u_as_a_pair():
    model = Autoencoder(PAIRED, dict(type='A2U', mode='static', paired=True))
    loss = model(torch.rand(2, 1, 32, 32), mode='loss')['loss']
    loss.backward()
    for upsampler in model.upsamplers.values():
        assert upsampler.projection_down.grad.abs().sum() > 0
        assert upsampler.projection_up.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(downsample_cfg='conv'), TypeError, "downsample_cfg: expected a dict .*got 'conv'"),
        (dict(downsample_cfg=dict(type='avg')), ValueError, "conv, max_pool, paired, got 'avg'"),
        (dict(downsample_cfg=dict()), ValueError, 'downsample_cfg.*got None'),
        (dict(downsample_cfg=dict(type='conv', stride=2)), ValueError, 'no option but type'),
        (dict(upsample_cfg='nearest'), TypeError, 'upsample_cfg: expected a dict'),
        (dict(step_cfgs=dict(c1_c0={})), ValueError, 'c2_c1, c3_c2, c4_c3.*c1_c0'),
        (dict(in_channels=0), ValueError, 'in_channels: .*got 0'),
        (dict(channels=(32,)), ValueError, r'channels: expected at least 2, got \(32,\)'),
        (dict(channels=5), TypeError, 'channels: expected a sequence .*got 5'),
        (dict(channels=(32, 6.5)), TypeError, r'channels: .*got 6\.5'),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        Autoencoder(**{'downsample_cfg': CONV, 'upsample_cfg': NEAREST, **options})
