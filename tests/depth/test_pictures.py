"""The tools and hooks that draw segmentors and detectors draw depth estimators as well."""

import copy
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import save_checkpoint
from mmseg.apis import MMSegInferencer
from mmseg.registry import MODELS
from PIL import Image
from testing_depth_pictures import (
    HEIGHT,
    MAX_DEPTH,
    NAMES,
    STEPS,
    WIDTH,
    config_text,
    make_runner,
    model_config,
    write_data,
)

from sapa_mm.depth.edges import depth_edges
from sapa_mm.tools import visualize
from sapa_mm.tools.configs import read_config
from sapa_mm.tools.errors import ToolError
from sapa_mm.tools.inference import load_model, predict, without_truth
from sapa_mm.tools.predictions import draw_predictions
from sapa_mm.visualization import (
    depth_to_rgb,
    draw_depths,
    draw_upsampling,
    draw_upsampling_steps,
    figure_to_rgb,
    input_image,
    record_upsampling,
)

TITLE = 'predicted depth,\nlight 0 to dark 8 m'


class Trained(NamedTuple):
    """A config, its weights, and the images and true depths of its test."""

    config: Path
    checkpoint: Path
    images: list[Path]
    depths: list[np.ndarray]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('depth')
    depths = list(write_data(folder).values())
    config = folder / 'tiny.py'
    config.write_text(config_text(folder))
    torch.manual_seed(0)
    init_default_scope('mmseg')
    model = MODELS.build(model_config())
    meta = dict(dataset_meta=dict(classes=('room',), palette=[[9, 9, 9]]))
    save_checkpoint(dict(meta=meta, state_dict=model.state_dict()), str(folder / 'tiny.pth'))
    images = [folder / 'images' / 'test' / f'{name}.jpg' for name in NAMES]
    return Trained(config, folder / 'tiny.pth', images, depths)


def read(path):
    return np.asarray(Image.open(path).convert('RGB'))


def predicted(trained):
    """The depth of each image, by the model alone."""
    init_default_scope('mmseg')
    model = MODELS.build(model_config()).eval()
    model.load_state_dict(torch.load(trained.checkpoint)['state_dict'])
    found = []
    for path in trained.images:
        image = cv2.resize(cv2.imread(str(path)), (2 * WIDTH, 2 * HEIGHT))
        inputs = torch.from_numpy(image).permute(2, 0, 1).flip(0)[None].float()
        inputs = torch.nn.functional.pad((inputs - 120) / 60, (0, 16, 0, 16))
        with torch.no_grad():
            depth = model(inputs, mode='tensor')
        depth = torch.nn.functional.interpolate(depth, inputs.shape[2:], mode='bilinear')
        depth = depth[..., : 2 * HEIGHT, : 2 * WIDTH]
        depth = torch.nn.functional.interpolate(depth, (HEIGHT, WIDTH), mode='bilinear')
        found.append(depth[0, 0].numpy())
    assert np.std(found) > 0.1
    return found


def test_the_tools_predict_without_truth(trained):
    cfg = read_config(str(trained.config))
    before = copy.deepcopy(cfg.to_dict())
    model = load_model(cfg, trained.checkpoint, 'cpu')
    for path, expected in zip(trained.images, predicted(trained), strict=True):
        depth = predict(model, cv2.imread(str(path))).pred_depth_map.data
        assert depth.shape == (1, HEIGHT, WIDTH)
        assert torch.allclose(depth[0], torch.from_numpy(expected), atol=1e-4)
    assert cfg.to_dict() == before


def test_what_loads_truth_is_found_by_its_class():
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='mmseg.LoadDepthAnnotation'),
        dict(type='LoadBiomedicalAnnotation'),
        dict(type='LoadAnnotations'),
        dict(type='mmcv.LoadAnnotations'),
        dict(type='LoadDepthAnnotation'),
        dict(type='Resize', scale=(4, 4)),
        dict(type='PackSegInputs'),
    ]
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline))))
    kept = [transform.type for transform in without_truth(cfg).test_pipeline]
    assert kept == ['LoadImageFromFile', 'Resize', 'PackSegInputs']
    assert 'test_pipeline' not in cfg and len(cfg.test_dataloader.dataset.pipeline) == 8


def test_mmsegs_inferencer(trained, tmp_path):
    inferencer = MMSegInferencer(str(trained.config), str(trained.checkpoint), device='cpu')
    found = inferencer([str(path) for path in trained.images], out_dir=str(tmp_path))
    for name, depth, expected in zip(NAMES, found['predictions'], predicted(trained), strict=True):
        assert np.allclose(depth, expected, atol=1e-4)
        picture = read(tmp_path / 'vis' / f'{name}.jpg')
        assert picture.shape[1] == 2 * 4 * WIDTH  # image and prediction, four times as large


def test_visualize(trained, tmp_path):
    out = tmp_path / 'out'
    arguments = [trained.config, trained.checkpoint, *trained.images, '--out-dir', out]
    visualize.main([str(argument) for argument in arguments])
    names = [f'{name}_{step}.png' for name in NAMES for step in (*STEPS, 'steps')]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)

    model = load_model(read_config(str(trained.config)), trained.checkpoint, 'cpu')
    with record_upsampling(model) as recording:
        sample = predict(model, cv2.imread(str(trained.images[1])))
    image = input_image(recording.inputs, model.data_preprocessor)
    assert image.shape == (96, 128, 3)
    # What the network saw is twice as large, and padded below and on the right.
    seen = sample.pred_depth_map.data[0].numpy().repeat(2, axis=0).repeat(2, axis=1)
    seen = np.pad(seen, ((0, 96 - 2 * HEIGHT), (0, 128 - 2 * WIDTH)))
    shown = image, depth_to_rgb(seen, (0, MAX_DEPTH))
    for name, step in recording.steps.items():
        figure = draw_upsampling(step, *shown, prediction_title=TITLE)
        assert np.array_equal(read(out / f'{NAMES[1]}_{name}.png'), figure_to_rgb(figure))
    sheet = draw_upsampling_steps(list(recording.steps.values()), *shown, prediction_title=TITLE)
    assert np.array_equal(read(out / f'{NAMES[1]}_steps.png'), figure_to_rgb(sheet))


def test_the_hook_draws_the_upsampling(trained, tmp_path):
    folder = trained.config.parent
    hook = dict(type='UpsamplingVisualizationHook', interval=1, steps=['c2_c1'])
    with DefaultScope.overwrite_default_scope('mmseg'):
        runner = make_runner(
            folder, tmp_path / 'run', dict(type='SegLocalVisualizer'), custom_hooks=[hook]
        )
        runner.test()
        model = runner.model
        batch = next(iter(runner.test_dataloader))
        with torch.no_grad(), record_upsampling(model) as recording:
            (sample,) = model.test_step(batch)
    paths = {path.name: path for path in (tmp_path / 'run').rglob('*.png')}
    assert set(paths) == {f'test_upsampling_c2_c1_{name}_0.png' for name in NAMES}
    image = input_image(recording.inputs, model.data_preprocessor)
    seen = sample.pred_depth_map.data[0].numpy().repeat(2, axis=0).repeat(2, axis=1)
    seen = np.pad(seen, ((0, 96 - 2 * HEIGHT), (0, 128 - 2 * WIDTH)))
    figure = draw_upsampling(
        recording.steps['c2_c1'],
        image,
        depth_to_rgb(seen, (0, MAX_DEPTH)),
        prediction_title=TITLE,
    )
    got = read(paths[f'test_upsampling_c2_c1_{NAMES[0]}_0.png'])
    assert np.array_equal(got, figure_to_rgb(figure))


def test_predictions_beside_the_truth(trained, tmp_path):
    cfg = read_config(str(trained.config))
    models = {'one': (cfg, str(trained.checkpoint)), 'two': (cfg, str(trained.checkpoint))}
    draw_predictions(tmp_path / 'got.png', models, 2, 'cpu')
    model = load_model(cfg, trained.checkpoint, 'cpu')
    images = [cv2.imread(str(path)) for path in trained.images]
    found = [predict(model, image).pred_depth_map.data[0].numpy() for image in images]
    draw_depths(
        tmp_path / 'expected.png',
        [image[..., ::-1] for image in images],
        {'one': found, 'two': found},
        trained.depths,
        find_edges=depth_edges,
    )
    assert np.array_equal(read(tmp_path / 'got.png'), read(tmp_path / 'expected.png'))


def test_predictions_of_a_test_without_truth(trained, tmp_path):
    cfg = read_config(str(trained.config))
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline[:] = [step for step in pipeline if step.type != 'LoadDepthAnnotation']
    with pytest.raises(ToolError, match='test_dataloader: expected images with one of gt_inst'):
        draw_predictions(tmp_path / 'got.png', {'one': (cfg, str(trained.checkpoint))}, 2, 'cpu')
    assert not list(tmp_path.iterdir())
