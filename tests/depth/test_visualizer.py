"""Depth in the pictures of a run: one scale for all of them."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer
from PIL import Image
from testing_depth_pictures import HEIGHT, MAX_DEPTH, NAMES, WIDTH, make_runner, write_data

from sapa_mm.depth import DepthVisualizer
from sapa_mm.visualization.depth import ABOVE, BELOW

UNKNOWN = (128, 128, 128)
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 210, 3)).astype(np.uint8)


def colour(depth, max_depth=10.0):
    """The colour of a depth by matplotlib's own table of 256."""
    table = (255 * np.array(colormaps['magma_r'].colors)).astype(np.uint8)
    return tuple(table[min(int(256 * depth / max_depth), 255)])


def sample(**maps):
    return SegDataSample(
        **{name: PixelData(data=torch.as_tensor(data)) for name, data in maps.items()}
    )


def draw(visualizer, drawn, image=IMAGE, **options):
    visualizer.add_datasample('a', image, drawn, **options)
    return visualizer.get_image()


def ramp(low, high, shape=IMAGE.shape[:2]):
    return np.linspace(low, high, shape[1], dtype=np.float32)[None, None].repeat(shape[0], 1)


def test_image_truth_and_prediction_side_by_side():
    truth, prediction = ramp(0.5, 12.0), ramp(9.0, 1.0)
    truth[0, :3, :20] = 0
    prediction[0, -3:] = np.nan
    drawn = sample(gt_depth_map=truth, pred_depth_map=prediction)
    before = IMAGE.copy()
    got = draw(DepthVisualizer(), drawn)
    height, width = IMAGE.shape[:2]
    assert got.shape == (ABOVE + height + BELOW, 3 * width, 3) and got.dtype == np.uint8
    assert np.array_equal(IMAGE, before)
    panels = np.split(got[ABOVE : ABOVE + height], 3, axis=1)
    assert np.array_equal(panels[0], IMAGE)
    assert (panels[1][:3, :20] == UNKNOWN).all() and (panels[2][-3:] == UNKNOWN).all()
    for panel, depth in zip(panels[1:], (truth[0], prediction[0]), strict=True):
        for column in (25, 100, 180, 209):
            assert tuple(panel[10, column]) == colour(depth[10, column])
    # The titles above and the scale below have something in them.
    assert (got[:ABOVE] < 100).any() and (got[-BELOW:] < 100).any()
    assert (np.abs(got[-BELOW:].astype(int) - colour(5.0)).max(-1) <= 1).any()


@pytest.mark.parametrize(
    ('maps', 'options', 'count'),
    [
        (('gt_depth_map', 'pred_depth_map'), dict(draw_gt=False), 2),
        (('gt_depth_map', 'pred_depth_map'), dict(draw_pred=False), 2),
        (('gt_depth_map', 'pred_depth_map'), dict(draw_gt=False, draw_pred=False), 1),
        (('pred_depth_map',), {}, 2),
    ],
)
def test_what_is_drawn(maps, options, count):
    values = {name: ramp(2.0, 2.0) if name == 'gt_depth_map' else ramp(7.0, 7.0) for name in maps}
    got = draw(DepthVisualizer(), sample(**values), with_labels=True, **options)
    assert got.shape[1] == count * IMAGE.shape[1]
    depth = 2.0 if options.get('draw_pred') is False else 7.0
    expected = colour(depth) if count == 2 else tuple(IMAGE[4, -5])
    assert tuple(got[ABOVE + 4, -5]) == expected


def test_the_scale_stays_where_mmsegs_changes():
    near, far = ramp(1.0, 4.0), ramp(3.0, 6.0)
    at = {}  # the colour of 3.5 m in either map
    for kind in (DepthVisualizer(max_depth=7.0), SegLocalVisualizer()):
        for name, depth in (('near', near), ('far', far)):
            got = draw(kind, sample(pred_depth_map=depth))
            column = np.abs(depth[0, 0] - 3.5).argmin()
            # Stock draws the map below its image, ours beside it.
            ours = isinstance(kind, DepthVisualizer)
            row, left = (ABOVE + 4, IMAGE.shape[1]) if ours else (len(IMAGE) + 4, 0)
            at[type(kind), name] = got[row, left + column].astype(int)
    ours = np.abs(at[DepthVisualizer, 'near'] - at[DepthVisualizer, 'far']).max()
    stock = np.abs(at[SegLocalVisualizer, 'near'] - at[SegLocalVisualizer, 'far']).max()
    assert ours <= 5 and stock > 100
    assert np.abs(at[DepthVisualizer, 'near'] - colour(3.5, 7.0)).max() <= 5


def test_small_images_are_enlarged_and_maps_of_another_size_fitted():
    image = IMAGE[:, :60]
    depth = ramp(2.0, 2.0, (48, 120))
    depth[0, :, 60:] = 0
    got = draw(DepthVisualizer(), sample(gt_depth_map=depth), image)
    scale = 4
    assert got.shape == (ABOVE + scale * 24 + BELOW, 2 * scale * 60, 3)
    panels = np.split(got[ABOVE:-BELOW], 2, axis=1)
    assert np.array_equal(panels[0][::scale, ::scale], image)
    # No depth in between: neither known where it is not, nor of another value.
    assert (panels[1][:, : scale * 30] == colour(2.0)).all()
    assert (panels[1][:, scale * 30 :] == UNKNOWN).all()


def test_a_file_in_the_backends_place(tmp_path):
    drawn = sample(pred_depth_map=ramp(1.0, 9.0))
    visualizer = DepthVisualizer(
        vis_backends=[dict(type='LocalVisBackend')], save_dir=str(tmp_path / 'run')
    )
    got = draw(visualizer, drawn, out_file=str(tmp_path / 'out.png'))
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'out.png')), got)
    assert not list((tmp_path / 'run').rglob('*.png'))
    visualizer.add_datasample('name', IMAGE, drawn, step=3)
    (path,) = (tmp_path / 'run').rglob('*.png')
    assert path.name == 'name_3.png'
    assert np.array_equal(np.asarray(Image.open(path)), got)


def test_segmentations_as_mmseg_draws_them():
    drawn = sample(pred_sem_seg=torch.arange(210).expand(1, 24, 210) // 105)
    pictures = []
    for kind in (DepthVisualizer, SegLocalVisualizer):
        visualizer = kind(alpha=0.5)
        visualizer.dataset_meta = dict(classes=['a', 'b'], palette=[[250, 0, 0], [0, 250, 0]])
        pictures.append(draw(visualizer, drawn, with_labels=False))
    assert np.array_equal(*pictures)
    assert not np.array_equal(pictures[0], IMAGE)


@pytest.mark.parametrize(
    ('max_depth', 'error'), [(0, ValueError), (-1.0, ValueError), ('10', TypeError)]
)
def test_bad_options(max_depth, error):
    with pytest.raises(error, match='max_depth: expected a positive number'):
        DepthVisualizer(max_depth=max_depth)


def test_mmsegs_hook_draws_a_test(tmp_path):
    depths = write_data(tmp_path)
    with DefaultScope.overwrite_default_scope('mmseg'):
        runner = make_runner(
            tmp_path,
            tmp_path / 'run',
            dict(type='DepthVisualizer', max_depth=MAX_DEPTH),
            visualization=dict(type='SegVisualizationHook', draw=True, interval=1),
        )
        runner.test()
        predictions = [runner.model.test_step(batch)[0] for batch in runner.test_dataloader]
    # The last number is 0 with upstream's packages, and the batch's with the fork's.
    pictures = {path.name.partition('.jpg_')[0]: path for path in (tmp_path / 'run').rglob('*.png')}
    assert set(pictures) == {f'test_{name}' for name in NAMES}
    scale = 4
    for name, prediction in zip(NAMES, predictions, strict=True):
        got = np.asarray(Image.open(pictures[f'test_{name}']))
        assert got.shape == (ABOVE + scale * HEIGHT + BELOW, 3 * scale * WIDTH, 3)
        _, truth, found = np.split(got[ABOVE:-BELOW:scale, ::scale], 3, axis=1)
        assert (truth[:5, :7] == UNKNOWN).all()
        for column in (10, 50):
            assert tuple(truth[20, column]) == colour(depths[name][20, column], MAX_DEPTH)
            depth = prediction.pred_depth_map.data[0, 20, column].item()
            assert tuple(found[20, column]) == colour(depth, MAX_DEPTH)
