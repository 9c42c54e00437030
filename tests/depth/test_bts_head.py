"""BTS's decoder against a plain rewriting of it, layer by layer, and in mmseg's estimator."""

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.nn import functional as F

from sapa_mm.depth import GuidedBTSHead, StemResNet
from sapa_mm.tools.presets import upsampler_config

CHANNELS = (16, 16, 32, 64, 128)
SAPA_B = dict(type='SAPA', similarity='bilinear')
# The paper's Table 4: what each adds to the decoder with nearest upsampling.
ADDED = {
    'nearest': ({}, 0),
    'carafe': ({}, 411_280),
    'index-net': ({}, 44_193_536),
    'a2u': (dict(encoder_norm=True), 78_104),
    'sapa-b': ({}, 159_104),
    'sapa-g': ({}, 252_164),
}


def features(size: tuple[int, int], n: int = 2, dtype=torch.float64) -> list[Tensor]:
    """Features of an image of this size."""
    torch.manual_seed(0)
    sizes = [tuple(-(-side // 2**i) for side in size) for i in range(1, 6)]
    return [torch.randn(n, c, *s, dtype=dtype) for c, s in zip(CHANNELS, sizes, strict=True)]


def make_head(upsample_cfg: dict = SAPA_B, **kwargs: object) -> GuidedBTSHead:
    """A narrow head in float64 whose norms are not the identity."""
    torch.manual_seed(1)
    head = GuidedBTSHead(CHANNELS, upsample_cfg, bts_size=64, max_depth=8.0, **kwargs)
    head.init_weights()
    for name, value in head.state_dict().items():
        if name.endswith(('running_mean', 'bias')):
            value.normal_(0, 0.2)
        elif name.endswith('running_var'):
            value.uniform_(0.5, 2)
    return head.double()


class Plain:
    """The decoder's layers by their names in the state dict, one call each."""

    def __init__(self, state: dict[str, Tensor]):
        self.state = state

    def conv(self, name: str, x: Tensor, dilation: int = 1) -> Tensor:
        weight = self.state[f'{name}.weight']
        return F.conv2d(x, weight, padding=dilation * (weight.shape[2] // 2), dilation=dilation)

    def norm(self, name: str, x: Tensor, eps: float = 1.1e-5) -> Tensor:
        keys = ('running_mean', 'running_var', 'weight', 'bias')
        mean, var, weight, bias = (self.state[f'{name}.{key}'][:, None, None] for key in keys)
        return (x - mean) / (var + eps).sqrt() * weight + bias

    def chain(self, name: str, x: Tensor) -> Tensor:
        """1x1 convolutions with ELUs, and a last one without."""
        steps = 1 + max(int(key.split('.')[1]) for key in self.state if key.startswith(name))
        for i in range(steps - 1):
            x = F.elu(self.conv(f'{name}.{i}.0', x))
        return self.conv(f'{name}.{steps - 1}', x)

    def planes(self, name: str, x: Tensor, k: int) -> Tensor:
        """The planes' depth, pixel by pixel of a cell."""
        a, b, c = self.chain(name, x).sigmoid().unbind(1)
        theta, phi = a * math.pi / 3, b * 2 * math.pi
        n, h, w = a.shape
        depth = x.new_empty(n, 1, h * k, w * k)
        for i in range(k):
            for j in range(k):
                u, v = (j - (k - 1) / 2) / k, (i - (k - 1) / 2) / k
                ray = theta.sin() * (phi.cos() * u + phi.sin() * v) + theta.cos()
                depth[:, 0, i::k, j::k] = c / ray.clamp(min=0.05)
        return depth


def decode(head: GuidedBTSHead, inputs: list[Tensor]) -> Tensor:
    """The decoder, by the table of layers, with the head's upsamplers."""
    c0, c1, c2, c3, c4 = inputs
    p, up = Plain(head.state_dict()), head.upsamplers
    x = p.norm('up5.1', F.elu(p.conv('up5.0.0', up['up5'](F.relu(c4), c3))))
    x = F.elu(p.conv('conv5.0', torch.cat([x, c3], 1)))
    up4 = p.norm('up4.1', F.elu(p.conv('up4.0.0', up['up4'](x, c2))))
    conv4 = p.norm('conv4.1', F.elu(p.conv('conv4.0.0', torch.cat([up4, c2], 1))))
    outs = []
    for i, dilation in enumerate((3, 6, 12, 18, 24)):
        x = conv4 if i == 0 else torch.cat([up4, c2, *outs], 1)
        layer = 0
        if i:
            x, layer = p.norm(f'atrous.{i}.0', x), 1
        x = p.conv(f'atrous.{i}.{layer + 1}', F.relu(x))
        x = F.relu(p.norm(f'atrous.{i}.{layer + 2}', x, 1e-5))
        outs.append(p.conv(f'atrous.{i}.{layer + 4}', x, dilation))
    x = F.elu(p.conv('atrous_fusion.0', torch.cat([conv4, *outs], 1)))

    def crop(depth: Tensor, like: Tensor) -> Tensor:
        return depth[..., : like.shape[2], : like.shape[3]]

    d8 = p.planes('reduce8', x, 8)
    x = p.norm('up3.1', F.elu(p.conv('up3.0.0', up['up3'](x, c1))))
    x = F.elu(p.conv('conv3.0', torch.cat([x, c1, crop(d8[..., ::4, ::4], c1)], 1)))
    d4 = p.planes('reduce4', x, 4)
    x = p.norm('up2.1', F.elu(p.conv('up2.0.0', up['up2'](x, c0))))
    x = F.elu(p.conv('conv2.0', torch.cat([x, c0, crop(d4[..., ::2, ::2], c0)], 1)))
    d2 = p.planes('reduce2', x, 2)
    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = F.elu(p.conv('up1.0', x))
    d1 = p.chain('reduce1', x).sigmoid()
    x = torch.cat([x, d1, crop(d2, x), crop(d4, x), crop(d8, x)], 1)
    return 8.0 * p.conv('conv_depth', F.elu(p.conv('conv1.0', x))).sigmoid()


@pytest.mark.parametrize('size', [(64, 96), (97, 131), (33, 34)])
@pytest.mark.parametrize('name', ['nearest', 'sapa-b', 'sapa-g', 'carafe'])
def test_it_is_the_table_of_layers(name, size):
    head = make_head(upsampler_config(name)).eval()
    inputs = features(size)
    depth = head(inputs)
    assert depth.shape == (2, 1, *(2 * -(-side // 2) for side in size))
    torch.testing.assert_close(depth, decode(head, inputs), rtol=1e-9, atol=1e-9)
    assert 0 < depth.min() < depth.max() < 8


def test_layer4_passes_a_relu():
    head = make_head().eval()
    inputs = features((64, 64))
    expected = head(inputs)
    inputs[4] = inputs[4].relu()
    assert head(inputs).equal(expected)


@pytest.mark.parametrize('name', ADDED)
def test_parameters_are_the_papers(name):
    options, added = ADDED[name]
    head = GuidedBTSHead((64, 256, 512, 1024, 2048), upsampler_config(name, options))
    assert sum(p.numel() for p in head.parameters()) == 23_973_936 + added
    assert sum(p.numel() for p in head.upsamplers.parameters()) == added


def test_the_model_is_the_papers_less_the_classifier_that_it_counts():
    init_default_scope('mmseg')
    backbone = StemResNet(50)
    total = 23_973_936 + sum(p.numel() for p in backbone.parameters())
    assert total == 47_481_968
    assert round((total + 2048 * 1000 + 1000) / 1e6, 2) == 49.53


def test_initialization():
    torch.manual_seed(0)
    head = GuidedBTSHead((64, 256, 512, 1024, 2048), SAPA_B)
    head.init_weights()
    for name, weight in head.named_parameters():
        if name.startswith('upsamplers.'):
            continue
        assert not name.endswith('bias') or weight.dim() == 1
        if weight.dim() == 4:
            fans = (weight.shape[0] + weight.shape[1]) * weight.shape[2] ** 2
            bound = math.sqrt(6 / fans)
            assert weight.abs().max() <= bound, name
            assert weight.abs().max() > 0.8 * bound, name
    # Normally distributed, as SAPA has it, and not by the head's rule.
    query = head.upsamplers['up5'].query_proj.weight
    assert query.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize('value', [1e4, -1e4])
def test_saturated_depth_has_a_finite_loss_and_gradient(value):
    head = make_head()
    output = torch.full((1, 1, 4, 4), value, requires_grad=True)
    depth = head.max_depth * output.sigmoid()
    head.loss_decode(depth, torch.full((1, 1, 4, 4), 2.0)).backward()
    assert output.grad.isfinite().all()


def estimator(upsample_cfg: dict = SAPA_B) -> torch.nn.Module:
    init_default_scope('mmseg')
    model = MODELS.build(
        Config(
            dict(
                type='DepthEstimator',
                data_preprocessor=dict(
                    type='SegDataPreProcessor', mean=[128.0] * 3, std=[64.0] * 3, seg_pad_val=0
                ),
                backbone=dict(type='StemResNet', depth=18, stem_channels=16, base_channels=16),
                decode_head=dict(
                    type='GuidedBTSHead',
                    in_channels=CHANNELS,
                    bts_size=64,
                    upsample_cfg=upsample_cfg,
                ),
                train_cfg=dict(),
                test_cfg=dict(mode='whole'),
            )
        )
    )
    model.init_weights()
    return model


def batch(size: tuple[int, int], known: bool = True, n: int = 2) -> dict:
    """Images of noise, whose depth grows from left to right."""
    torch.manual_seed(2)
    samples = []
    for _ in range(n):
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size))
        depth = torch.linspace(1, 9, size[1]).expand(1, *size).clone()
        depth[:, : size[0] // 4] = torch.nan
        sample.gt_depth_map = PixelData(data=depth if known else torch.zeros(1, *size))
        samples.append(sample)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(n)]
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize('dtype', [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('known', [True, False])
@pytest.mark.parametrize('size', [(64, 64), (67, 93)])
def test_training_reaches_every_parameter(size, known, dtype):
    model = estimator().train()
    model.data_preprocessor.size = size
    with torch.autocast('cpu', dtype or torch.bfloat16, enabled=dtype is not None):
        data = model.data_preprocessor(batch(size, known), training=True)
        losses = model(**data, mode='loss')
        loss = losses['decode.loss_silog']
        assert loss.dtype == torch.float32
        loss.backward()
    assert (loss > 0) == known
    for name, parameter in model.named_parameters():
        # A process of several waits for a gradient of each, though it be zero.
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # The residual branches of a new backbone start at zero.
        if known and name.startswith('decode_head'):
            assert parameter.grad.any(), name


@pytest.mark.parametrize('size', [(64, 64), (67, 93)])
def test_prediction_has_the_images_size(size):
    model = estimator().eval()
    one = batch(size, n=1)
    with torch.no_grad():
        (sample,) = model.test_step(one)
        inputs = model.data_preprocessor(batch(size, n=1))['inputs']
        depth = model.decode_head(model.backbone(inputs))
    got = sample.pred_depth_map.data
    assert got.shape == (1, *size)
    # Cropped, not interpolated.
    assert got.equal(depth[0, :, : size[0], : size[1]])


def test_channels_last():
    model = estimator().eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model.decode_head(model.backbone(x))
        model = model.to(memory_format=torch.channels_last)
        last = x.contiguous(memory_format=torch.channels_last)
        got = model.decode_head(model.backbone(last))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_features_that_are_views():
    head = make_head().eval()
    inputs = features((64, 96))
    strided = [x.repeat_interleave(2, 3)[..., ::2] for x in inputs]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(head(strided), head(inputs), rtol=1e-9, atol=1e-9)


def test_single_steps():
    head = make_head(step_cfgs=dict(up5=dict(type='nearest'), up2=dict(kernel_size=3)))
    assert type(head.upsamplers['up5']).__name__ == 'SingleInputUpsampler'
    assert head.upsamplers['up2'].kernel_size == 3 and head.upsamplers['up4'].kernel_size == 5


def test_bad_arguments():
    with pytest.raises(ValueError, match=r'in_channels: expected five features.*got 4'):
        GuidedBTSHead(CHANNELS[1:], SAPA_B)
    with pytest.raises(ValueError, match='bts_size: expected a multiple of 16, got 72'):
        GuidedBTSHead(CHANNELS, SAPA_B, bts_size=72)
    with pytest.raises(ValueError, match='bts_size: expected an int of at least 32, got 16'):
        GuidedBTSHead(CHANNELS, SAPA_B, bts_size=16)
    with pytest.raises(ValueError, match='max_depth: expected a positive number, got 0'):
        GuidedBTSHead(CHANNELS, SAPA_B, max_depth=0)
    with pytest.raises(ValueError, match='step_cfgs: expected steps of up5, up4, up3, up2'):
        GuidedBTSHead(CHANNELS, SAPA_B, dict(up1=dict(type='nearest')))
    for upsampler in (dict(type='SAPA', similarity='inner'), dict(type='FADE')):
        with pytest.raises(ValueError, match=r'upsample_cfg: .*may have other channels'):
            GuidedBTSHead(CHANNELS, upsampler)
    with pytest.raises(ValueError, match=r'^guide_channels: encoder_norm expected a multiple'):
        GuidedBTSHead(CHANNELS, dict(type='A2U', encoder_norm=True))


def test_a_batch_without_depth():
    model = estimator()
    data = batch((64, 64))
    del data['data_samples'][1].gt_depth_map
    data = model.data_preprocessor(data, training=False)
    with pytest.raises(ValueError, match='batch_data_samples: expected a gt_depth_map'):
        model(**data, mode='loss')


def test_what_is_padded_has_no_depth():
    # The preprocessor's default pads with 255, which would be metres.
    model = estimator().eval()
    head = model.decode_head
    depth = torch.full((1, 64, 96), 255.0)
    depth[:, :48, :80] = 3.0
    meta = dict(img_shape=(64, 96), padding_size=(0, 16, 0, 16))
    sample = SegDataSample(metainfo=meta)
    sample.gt_depth_map = PixelData(data=depth)
    output = torch.rand(1, 1, 64, 96) + 1
    (loss,) = head.loss_by_feat(output, [sample]).values()
    expected = head.loss_decode(output[..., :48, :80], depth[None, :, :48, :80])
    torch.testing.assert_close(loss, expected)


def test_mmsegs_faulty_windows_are_refused():
    model = estimator().eval()
    model.test_cfg.update(mode='slide', crop_size=(64, 64), stride=(32, 32))
    with pytest.raises(ValueError, match=r"test_cfg: expected mode 'whole' or 'slide_flip'"):
        model.test_step(batch((64, 96), n=1))
