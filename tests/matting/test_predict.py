"""From a picture and its trimap to alpha: the data preprocessor, padding, and what is written."""

import copy

import numpy as np
import pytest
import torch
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, PixelData
from testing_matting import (
    BILINEAR,
    INDEX_NET,
    MAX_POOL,
    PAIRED,
    SAPA,
    build_contrasting,
    build_small,
    make_inputs,
    make_sample,
    samples_of,
)
from upsampler_oracles import refused

from sapa_mm.matting import MattingPreprocessor

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIZES = [(37, 51), (16, 32), (17, 16), (5, 9), (33, 3), (1, 20), (2, 1), (1, 1)]


def alone(net, inputs, sample):
    """What is expected of one image (4, H, W), whose known trimap is overwritten: (1, H, W)."""
    _, h, w = inputs.shape
    padded = np.pad(inputs.numpy(), ((0, 0), (0, -h % 16), (0, -w % 16)), mode='reflect')
    with torch.no_grad():
        alpha = net.estimate(torch.from_numpy(padded)[None])[0, :, :h, :w]
    alpha = (alpha.double().clamp(0, 1) * 255).round().to(torch.uint8)
    trimap = sample.trimap.data
    alpha[trimap == 0] = 0
    alpha[trimap == 255] = 255
    return alpha


def predict(net, inputs, samples):
    with torch.no_grad():
        return net(inputs, samples, mode='predict')


def assert_is(actual, expected):
    """Float32 may round to the next integer, but not often."""
    assert actual.dtype == torch.uint8
    assert actual.shape == expected.shape
    difference = (actual.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() <= 1e-3


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize(
    ('upsample_cfg', 'downsample_cfg'), [(SAPA, MAX_POOL), (INDEX_NET, PAIRED)], ids=str
)
def test_pads_and_crops(upsample_cfg, downsample_cfg, size):
    net = build_contrasting(upsample_cfg, downsample_cfg)
    inputs = make_inputs(1, *size)
    samples = samples_of(inputs)
    samples[0].trimap.data.fill_(128)
    (result,) = predict(net, inputs, samples)
    assert result.pred_alpha.data.shape == (1, *size)
    assert_is(result.pred_alpha.data, alone(net, inputs[0], samples[0]))


def test_padding_shows():
    """The cases above tell padding from none, and reflection from others."""
    net = build_contrasting(SAPA)
    inputs = make_inputs(1, 37, 51)
    samples = samples_of(inputs)
    samples[0].trimap.data.fill_(128)
    right = alone(net, inputs[0], samples[0]).int()
    for mode in ('constant', 'edge', 'symmetric', 'wrap'):
        padded = np.pad(inputs[0].numpy(), ((0, 0), (0, 11), (0, 13)), mode=mode)
        with torch.no_grad():
            other = net.estimate(torch.from_numpy(padded)[None])[0, :, :37, :51]
        other = (other.clamp(0, 1) * 255).round().int()
        assert (other - right).abs().max() > 3, mode


def test_clips_rounds_and_overwrites():
    net = build_contrasting()
    inputs = make_inputs(2, 64, 80)
    samples = samples_of(inputs)
    with torch.no_grad():
        raw = net.estimate(inputs)  # nothing is padded
    results = predict(net, inputs, samples)
    assert len(results) == 2
    for result, sample, alpha in zip(results, samples, raw, strict=True):
        got, trimap = result.pred_alpha.data, sample.trimap.data
        unknown = trimap == 128
        assert got[trimap == 0].eq(0).all()
        assert got[trimap == 255].eq(255).all()
        below, above = unknown & (alpha < 0), unknown & (alpha > 1)
        within = unknown & ~below & ~above
        assert min(part.sum() for part in (below, above, within)) > 50
        assert got[below].eq(0).all()
        assert got[above].eq(255).all()
        # A half on average would be lost by cutting off.
        error = got[within].double() - 255 * alpha[within].double()
        assert error.abs().max() < 0.51
        assert abs(error.mean()) < 0.1


def test_the_trimap_that_counts_is_the_samples():
    """What is padded, or scaled, is not what is known."""
    net = build_contrasting()
    inputs = make_inputs(1, 32, 32)
    sample = make_sample(torch.full((1, 32, 32), 128))
    sample.trimap.data[:, :5] = 255
    sample.trimap.data[:, 5:9] = 0
    (result,) = predict(net, inputs, [sample])
    assert result.pred_alpha.data[:, :5].eq(255).all()
    assert result.pred_alpha.data[:, 5:9].eq(0).all()
    assert len(result.pred_alpha.data[:, 9:].unique()) > 20


def test_images_of_one_batch_do_not_see_each_other():
    """The inputs are padded to the largest, and img_shape says what of them is an image."""
    net = build_contrasting(SAPA)
    sizes = [(37, 51), (16, 60), (5, 9), (1, 1)]
    images = [make_inputs(1, *size)[0] for size in sizes]
    samples = [samples_of(image[None])[0] for image in images]
    batch = torch.full((4, 4, 37, 60), 7.0)
    for i, image in enumerate(images):
        batch[i, :, : image.shape[1], : image.shape[2]] = image
    for result, image, sample in zip(predict(net, batch, samples), images, samples, strict=True):
        assert_is(result.pred_alpha.data, alone(net, image, sample))
        (single,) = predict(net, image[None], [copy.deepcopy(sample)])
        assert torch.equal(single.pred_alpha.data, result.pred_alpha.data)


def test_the_inputs_are_left_alone():
    net = build_contrasting(SAPA)
    inputs = make_inputs(1, 37, 51)
    samples = samples_of(inputs)
    before, trimap = inputs.clone(), samples[0].trimap.data.clone()
    (result,) = predict(net, inputs, samples)
    assert torch.equal(inputs, before)
    assert torch.equal(result.trimap.data, trimap)
    assert result.img_path == 'a.png'
    as_dict = result.to_dict()  # as the metric gets it
    assert as_dict['pred_alpha']['data'].dtype == torch.uint8
    assert not as_dict['pred_alpha']['data'].requires_grad


def make_picture(*size):
    """An image (3, H, W), BGR, uint8, and its sample."""
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    return image, make_sample(torch.tensor([0, 128, 255])[torch.randint(3, (1, *size))])


def normalized(image, sample):
    rgb = image.flip(0).double()
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    return torch.cat([(rgb - mean) / std, sample.trimap.data.double() / 255])


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32], ids=str)
def test_preprocessor(training, dtype):
    preprocessor = build_small().data_preprocessor
    assert type(preprocessor) is MattingPreprocessor
    pairs = [make_picture(37, 51), make_picture(40, 20)]
    data = dict(
        inputs=[image.to(dtype) for image, _ in pairs], data_samples=[sample for _, sample in pairs]
    )
    result = preprocessor(data, training)
    assert result['inputs'].dtype == torch.float32
    assert result['inputs'].shape == (2, 4, 40, 51)
    for got, (image, sample) in zip(result['inputs'], pairs, strict=True):
        h, w = image.shape[1:]
        torch.testing.assert_close(
            got[:, :h, :w].double(), normalized(image, sample), rtol=1e-5, atol=1e-5
        )
        # What is padded is background.
        assert got[3, h:].eq(0).all()
        assert got[3, :, w:].eq(0).all()
        assert sample.img_shape == (h, w)
    assert len(result['data_samples']) == 2


def test_preprocessor_is_mmengines():
    cfg = dict(type='MattingPreprocessor', mean=[1.0, 2, 3], std=[4.0, 5, 6], pad_size_divisor=32)
    preprocessor = MODELS.build(cfg)
    assert isinstance(preprocessor, ImgDataPreprocessor)
    image, sample = make_picture(37, 51)
    data = dict(inputs=[image], data_samples=[sample])
    got = preprocessor(data)['inputs']
    assert got.shape == (1, 4, 64, 64)
    expected = (image.float() - torch.tensor([1.0, 2, 3])[:, None, None]) / torch.tensor(
        [4.0, 5, 6]
    )[:, None, None]
    torch.testing.assert_close(got[0, :3, :37, :51], expected)
    torch.testing.assert_close(got[0, 3:, :37, :51], sample.trimap.data / 255)
    assert got[0, 3, 37:].eq(0).all()


def test_a_stacked_batch():
    """Images of one size may come as one tensor."""
    pairs = [make_picture(32, 48) for _ in range(2)]
    data = dict(
        inputs=torch.stack([image for image, _ in pairs]),
        data_samples=[sample for _, sample in pairs],
    )
    got = build_small().data_preprocessor(data)['inputs']
    for one, pair in zip(got, pairs, strict=True):
        torch.testing.assert_close(one.double(), normalized(*pair), rtol=1e-5, atol=1e-5)


def test_from_pictures():
    net = build_contrasting(SAPA)
    pairs = [make_picture(37, 51), make_picture(40, 20), make_picture(9, 70)]
    data = dict(inputs=[image for image, _ in pairs], data_samples=[sample for _, sample in pairs])
    with torch.no_grad():
        results = net.test_step(data)
    for result, (image, sample) in zip(results, pairs, strict=True):
        assert_is(result.pred_alpha.data, alone(net, normalized(image, sample).float(), sample))
        with torch.no_grad():
            (single,) = net.test_step(dict(inputs=[image], data_samples=[copy.deepcopy(sample)]))
        assert torch.equal(single.pred_alpha.data, result.pred_alpha.data)


def test_learns_a_picture():
    """Its losses fall, and its errors with them."""
    net = build_small(BILINEAR)
    image, sample = make_picture(32, 32)
    sample = make_sample(torch.full((1, 32, 32), 128), training=True)
    sample.gt_alpha.data[:, :, :16] = 0.9
    sample.gt_alpha.data[:, :, 16:] = 0.1
    sample.gt_fg.data.fill_(200.0)
    sample.gt_bg.data.fill_(50.0)
    image = 50 + 150 * sample.gt_alpha.data.expand(3, -1, -1)
    data = dict(inputs=[image] * 2, data_samples=[sample] * 2)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    history = []
    for _ in range(30):
        losses = net(**net.data_preprocessor(data, True), mode='loss')
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(sum(losses.values()).item())
    assert history[-1] < 0.35 * history[0]


def test_a_sample_without_a_trimap():
    image, _ = make_picture(32, 32)
    bare = BaseDataElement(metainfo=dict(img_path='b.png', ori_shape=(32, 32), img_shape=(32, 32)))
    with refused('trimap', error=ValueError):
        build_small().data_preprocessor(dict(inputs=[image], data_samples=[bare]))


def test_no_samples():
    image, _ = make_picture(32, 32)
    with refused('data_samples', error=ValueError):
        build_small().data_preprocessor(dict(inputs=[image]))


@pytest.mark.parametrize('size', [(32, 31), (16, 32), (33, 32)], ids=str)
def test_a_trimap_of_another_size(size):
    pairs = [make_picture(32, 32), make_picture(32, 32)]
    pairs[1][1].trimap = PixelData(data=torch.zeros(1, *size, dtype=torch.uint8))
    data = dict(inputs=[image for image, _ in pairs], data_samples=[sample for _, sample in pairs])
    with refused('trimap', '32', str(size[0]), str(size[1]), error=ValueError):
        build_small().data_preprocessor(data)


def test_a_trimap_of_three_channels():
    image, sample = make_picture(32, 32)
    sample.trimap = PixelData(data=sample.trimap.data.repeat(3, 1, 1))
    with refused('trimap', '3', error=ValueError):
        build_small().data_preprocessor(dict(inputs=[image], data_samples=[sample]))
