"""Pictures of upsampling: colours of features, panels, kernels and their scale."""

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.model import ImgDataPreprocessor
from mmengine.structures import BaseDataElement, PixelData

from sapa_mm.visualization import (
    UpsamplingStep,
    depth_to_rgb,
    draw_upsampling,
    draw_upsampling_steps,
    feature_to_rgb,
    figure_to_rgb,
    input_image,
    outline_prediction,
    prediction_title,
)
from sapa_mm.visualization.upsampling import DPI, PANEL_INCHES

GRAY = 128
BOUNDARY = (255, 255, 0)


def test_pca_is_that_of_the_singular_values():
    feature = torch.randn(6, 9, 11) * torch.tensor([5.0, 1, 4, 1, 3, 1])[:, None, None] + 7
    points = feature.flatten(1).double().numpy()
    centred = points - points.mean(1, keepdims=True)
    left = np.linalg.svd(centred)[0][:, :3]
    left = left * np.sign(left[np.abs(left).argmax(0), range(3)])
    components = left.T @ centred
    low, high = np.percentile(components, (1, 99), axis=1, keepdims=True)
    expected = (255 * ((components - low) / (high - low)).clip(0, 1)).T.reshape(9, 11, 3)
    (got,) = feature_to_rgb(feature)
    assert got.dtype == np.uint8
    assert np.abs(got - expected).max() <= 0.51


def test_features_share_projection_and_range():
    x = torch.randn(8, 5, 6)
    first, rolled, doubled = feature_to_rgb(x, x.roll(2, 1), 2 * x)
    assert first.shape == (5, 6, 3)
    assert np.array_equal(np.roll(first, 2, 0), rolled)
    # They are twice as far from the centre in one range, so their colours are not those of x.
    spread = [np.abs(picture.astype(float) - GRAY).mean() for picture in (first, doubled)]
    assert spread[1] > 1.5 * spread[0]


def test_constant_features():
    constant = torch.randn(8)[:, None, None]
    small, large = feature_to_rgb(constant.expand(8, 2, 3), constant.expand(8, 4, 6))
    assert small.shape == (2, 3, 3) and large.shape == (4, 6, 3)
    assert (small == GRAY).all() and (large == GRAY).all()
    # Beside others they have one colour, the same at every size.
    others = feature_to_rgb(
        constant.expand(8, 2, 3), constant.expand(8, 4, 6), torch.randn(8, 9, 9)
    )
    colour = others[0][0, 0]
    assert (others[0] == colour).all() and (others[1] == colour).all()
    assert len(np.unique(others[2])) > 50


def test_first_three_channels():
    feature = torch.zeros(5, 2, 101)
    feature[1] = torch.linspace(-3, 7, 101)
    feature[4] = torch.randn(2, 101)
    (got,) = feature_to_rgb(feature, mode='first3')
    assert (got[..., [0, 2]] == GRAY).all()
    ramp = (np.linspace(0, 1, 101) - 0.01) / 0.98
    assert np.abs(got[0, :, 1] - 255 * ramp.clip(0, 1)).max() <= 0.51


@pytest.mark.parametrize('mode', ['pca', 'first3'])
@pytest.mark.parametrize('channels', [1, 2, 3])
def test_few_channels_and_points_that_are_not_finite(mode, channels):
    feature = torch.randn(channels, 6, 6)
    feature[0, 2, 3], feature[-1, 4, 4] = torch.nan, torch.inf
    (got,) = feature_to_rgb(feature, mode=mode)
    assert (got[2, 3] == 0).all() and (got[4, 4] == 0).all()
    rest = got.reshape(36, 3)[np.delete(np.arange(36), [15, 28])]
    for component in range(3):
        assert (len(np.unique(rest[:, component])) > 10) == (component < channels)
        assert component < channels or (rest[:, component] == GRAY).all()
    (got,) = feature_to_rgb(torch.full((channels, 2, 2), torch.nan), mode=mode)
    assert (got == 0).all()


def test_colours_draw_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    feature_to_rgb(torch.ones(4, 3, 3) + torch.arange(9).view(3, 3))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ('features', 'mode', 'message'),
    [
        ([torch.ones(4, 2, 2), torch.ones(5, 2, 2)], 'pca', r'features: .*\[4, 5\]'),
        ([torch.ones(4, 2, 2)], 'last', 'mode: .*pca.*first3.*last'),
    ],
)
def test_features_that_cannot_be_shown(features, mode, message):
    with pytest.raises(ValueError, match=message):
        feature_to_rgb(*features, mode=mode)


@pytest.mark.parametrize('converts', [True, False])
def test_the_image_that_the_network_saw(converts):
    preprocessor = ImgDataPreprocessor(
        mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], bgr_to_rgb=converts, pad_size_divisor=4
    )
    loaded = torch.randint(0, 256, (3, 6, 9), dtype=torch.uint8)
    inputs = preprocessor(dict(inputs=[loaded]))['inputs']
    got = input_image(inputs, preprocessor)
    assert got.shape == (8, 12, 3) and got.dtype == np.uint8
    assert np.array_equal(got[:6, :9], loaded.flip(0).permute(1, 2, 0).numpy())


def test_the_boundary_of_a_prediction():
    image = np.full((8, 16, 3), 90, np.uint8)
    classes = torch.zeros(1, 12, 24, dtype=torch.long)  # of an image twice as large
    classes[..., 12:] = 3
    sample = BaseDataElement(metainfo=dict(img_shape=(6, 12)), pred_sem_seg=PixelData(data=classes))
    got = outline_prediction(image, sample)
    scale = -(-round(PANEL_INCHES * DPI) // 16)
    assert got.shape == (8 * scale, 16 * scale, 3)
    marked = (got == BOUNDARY).all(-1)
    # It runs between the sixth and the seventh column, and not at the edge of the padding.
    columns = np.flatnonzero(marked.any(0))
    assert 0 < len(columns) <= 2 and set(columns) <= {6 * scale - 1, 6 * scale}
    assert marked[:, columns].all(0).any()
    assert outline_prediction(image, BaseDataElement()) is None


def test_the_depth_of_a_prediction():
    image = np.full((8, 16, 3), 90, np.uint8)
    depth = torch.full((1, 12, 24), 2.0)  # of an image twice as large
    depth[..., 12:] = 5.0
    depth[:, :2, :2] = torch.nan
    sample = BaseDataElement(
        metainfo=dict(img_shape=(6, 12)), pred_depth_map=PixelData(data=depth.bfloat16())
    )
    expected = np.zeros((8, 16), np.float32)  # what is padded is not known
    expected[:6, :6], expected[:6, 6:12], expected[0, 0] = 2, 5, 0
    assert np.array_equal(outline_prediction(image, sample, 8.0), depth_to_rgb(expected, (0, 8)))
    assert prediction_title(sample, 8.0) == 'predicted depth,\nlight 0 to dark 8 m'
    # Without a largest depth the scale is that of the prediction.
    assert np.array_equal(outline_prediction(image, sample), depth_to_rgb(expected, (2, 5)))
    assert prediction_title(sample) == 'predicted depth,\nlight 2 to dark 5 m'
    assert prediction_title(BaseDataElement()) == 'boundary of the\nprediction'


IMAGE = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)


def make_step(name='c2_c1', size=5, groups=1, low=(5, 5), high=(10, 10), channels=8):
    kernels = torch.randn(2, groups, size**2, *high).softmax(2) if size else None
    x = torch.randn(2, channels, *low)
    guide, output = torch.randn(2, 6, *high), torch.randn(2, channels, *high)
    return UpsamplingStep(name, 'SAPA (gated)', x, guide, output, kernels)


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


def pictures(figure, start):
    """What the panels show whose title starts so."""
    return [
        np.asarray(axis.images[0].get_array())
        for axis in figure.axes
        if axis.get_title().startswith(start)
    ]


def assert_nothing_is_cut_off(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox(canvas.get_renderer())
    assert box.x0 >= -0.02 and box.y0 >= -0.02
    assert box.x1 <= width + 0.02 and box.y1 <= height + 0.02


def test_panels_of_a_step():
    step = make_step()
    prediction = IMAGE[::-1]
    figure = draw_upsampling(step, IMAGE, prediction, index=1)
    assert figure.get_suptitle() == 'c2_c1: SAPA (gated), 5 \u00d7 5 to 10 \u00d7 10, K = 5'
    assert titles(figure)[:6] == [
        'input image\n40 \u00d7 40',
        'encoder feature\n6 channels, 10 \u00d7 10',
        'decoder feature\n8 channels, 5 \u00d7 5',
        'upsampled by SAPA (gated)\n8 channels, 10 \u00d7 10',
        'upsampled bilinearly\n8 channels, 10 \u00d7 10',
        'boundary of the\nprediction',
    ]
    x, output = step.x[1], step.output[1]
    bilinear = torch.nn.functional.interpolate(x[None], (10, 10), mode='bilinear')[0]
    shown = [*pictures(figure, 'decoder'), *pictures(figure, 'upsampled')]
    for got, expected in zip(shown, feature_to_rgb(x, output, bilinear), strict=True):
        assert np.array_equal(got, expected)
    assert np.array_equal(pictures(figure, 'encoder')[0], feature_to_rgb(step.guide[1])[0])
    assert np.array_equal(pictures(figure, 'input')[0], IMAGE)
    assert np.array_equal(pictures(figure, 'boundary')[0], prediction)

    maps = pictures(figure, 'kernel')
    kernels = step.kernels[1, 0].numpy()
    # They are the centre of 5 x 5, and above, below, left and right of it.
    for got, position in zip(maps, (12, 7, 17, 11, 13), strict=True):
        assert np.array_equal(got, kernels[position])
    kernel_axes = [axis for axis in figure.axes if axis.get_title().startswith('kernel')]
    assert kernel_axes[1].get_title() == 'kernel weight at (\u22121, 0)'
    assert len({id(axis.images[0].norm) for axis in kernel_axes}) == 1
    norm = kernel_axes[0].images[0].norm
    assert (norm.vmin, norm.vmax) == (0, np.percentile(maps, 99))
    picture = figure_to_rgb(figure)
    assert picture.dtype == np.uint8 and picture.shape[1] == round(6 * PANEL_INCHES * DPI)
    assert_nothing_is_cut_off(figure)


def test_positions_that_are_asked_for():
    positions = [(-2, 1), (2, 2), (0, 0), (1, -2), (0, 1), (-1, -1), [2, -2]]
    step = make_step()
    figure = draw_upsampling(step, IMAGE, positions=positions, features='first3')
    kernels = step.kernels[0, 0].numpy()
    places = [5 * (dy + 2) + dx + 2 for dy, dx in positions]
    for got, place in zip(pictures(figure, 'kernel'), places, strict=True):
        assert np.array_equal(got, kernels[place])
    assert not pictures(figure, 'boundary')
    assert 'first three channels' in figure.get_supxlabel()
    (window,) = pictures(figure, 'window')
    shown = (window != 1).any(-1).ravel()
    assert sorted(places) == list(np.flatnonzero(shown))
    assert_nothing_is_cut_off(figure)


@pytest.mark.parametrize('position', [(3, 0), (0, -3)])
@pytest.mark.parametrize(
    'draw', [draw_upsampling, lambda step, *a: draw_upsampling_steps([step], *a)]
)
def test_a_position_outside_the_window(draw, position):
    with pytest.raises(ValueError, match=rf'from -2 to 2 .*5 x 5 of c2_c1, got {position[0]} '):
        draw(make_step(), IMAGE, None, [(0, 0), position])


def test_a_step_without_kernels_says_so():
    figure = draw_upsampling(make_step(size=None), IMAGE)
    assert 'no kernels' in figure.get_suptitle()
    assert not pictures(figure, 'kernel') and not pictures(figure, 'window')
    (text,) = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert text.startswith('SAPA (gated) has no kernels to show: ')
    assert 'Kernels' not in figure.get_supxlabel()
    assert_nothing_is_cut_off(figure)


def test_a_window_of_one_and_groups():
    figure = draw_upsampling(make_step(size=1, groups=3), IMAGE)
    assert figure.get_suptitle().endswith('K = 1, group 1 of 3')
    assert len(pictures(figure, 'kernel')) == 1


def test_negative_and_missing_weights():
    step = make_step(size=3)
    step.kernels[0, 0, 4] = -2.0
    step.kernels[0, 0, 1, 0, 0] = torch.nan
    figure = draw_upsampling(step, IMAGE)
    norm = next(a.images[0].norm for a in figure.axes if a.get_title().startswith('kernel'))
    assert norm.vmin == -2 and 0 < norm.vmax < 1
    step.kernels.fill_(torch.nan)
    assert figure_to_rgb(draw_upsampling(step, IMAGE)).shape[2] == 3


@pytest.mark.parametrize('shape', [(40, 40), (20, 60), (70, 30)])
def test_the_sheet_has_a_row_a_step(shape):
    image = IMAGE[np.arange(shape[0]) % 40][:, np.arange(shape[1]) % 40]
    steps = [
        make_step('c4_c3', high=(9, 10), channels=256),
        make_step('neck.c3_c2', size=None),
        make_step('c2_c1', size=3, groups=2, low=(10, 10), high=(20, 20)),
    ]
    figure = draw_upsampling_steps(steps, image, image[::-1])
    expected = [steps[0].kernels[0, 0, place].numpy() for place in (12, 7, 17, 11, 13)]
    expected += [steps[2].kernels[0, 0, place].numpy() for place in (4, 1, 7, 3, 5)]
    # Two-dimensional pictures are maps.
    maps = [axis.images[0] for axis in figure.axes if axis.images]
    maps = [image for image in maps if image.get_array().ndim == 2]
    for got, kernel in zip(maps, expected, strict=True):
        assert np.array_equal(got.get_array(), kernel)
    assert len({id(image.norm) for image in maps}) == 1
    labels = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel().count('\n')]
    assert [label.split('\n')[0] for label in labels] == [step.name for step in steps]
    assert labels[0].endswith('5 \u00d7 5 to 9 \u00d7 10\n256 channels\nK = 5')
    assert labels[1].endswith('no kernels') and labels[2].endswith('K = 3\ngroup 1 of 2')
    assert sum(text.get_text() == 'none' for axis in figure.axes for text in axis.texts) == 5
    colours = {titles(figure).count(t) for t in ('encoder feature', 'upsampled bilinearly')}
    assert colours == {1}  # in the first row alone
    assert sum(a.images[0].get_array().shape == (*shape, 3) for a in figure.axes if a.images) == 2
    assert_nothing_is_cut_off(figure)


def test_steps_with_scales_of_their_own():
    step = make_step()
    larger = dataclasses.replace(step, kernels=7 * step.kernels)
    figure = draw_upsampling_steps([step, larger], IMAGE, own_scales=True)
    maps = [image.get_array() for axis in figure.axes for image in axis.images]
    maps = [np.asarray(image) for image in maps if image.ndim == 2]
    assert len(maps) == 10
    for first, second in zip(maps[:5], maps[5:], strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-6)
    assert np.percentile(maps[:5], 99) == pytest.approx(1)
    ratio = step.kernels[0, 0, 12] / step.kernels[0, 0, 7]
    np.testing.assert_allclose(maps[0] / maps[1], ratio, rtol=1e-5)
    assert "weight, of the row's largest" in [axis.get_ylabel() for axis in figure.axes]


def test_a_sheet_needs_steps():
    with pytest.raises(ValueError, match='steps: expected at least one'):
        draw_upsampling_steps([], IMAGE)
