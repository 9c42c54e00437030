import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS as DETECTORS
from mmengine.config import Config
from mmengine.registry import Registry, init_default_scope
from mmengine.runner import save_checkpoint
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS as SEGMENTORS
from PIL import Image

from sapa_mm.tools import visualize as tool
from sapa_mm.visualization import (
    draw_upsampling,
    draw_upsampling_steps,
    figure_to_rgb,
    input_image,
    outline_prediction,
    record_upsampling,
)

ROOT = Path(__file__).resolve().parents[2]

CONFIGS = ROOT / 'configs' / 'sapa'
SEGMENTOR = CONFIGS / 'segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py'
STOCK = CONFIGS / 'segformer_mit-t_bilinear_1xb8-600_toy-160x160.py'
DETECTOR = CONFIGS / 'faster-rcnn_r18_fpn_sapa-b_1xb2-100_toy-160x160.py'
STEPS = ['c4_c3', 'c4_c2', 'c4_c1', 'c3_c2', 'c3_c1', 'c2_c1']


class Inputs(NamedTuple):
    """Checkpoints of a segmentor and of a detector, and files of two images."""

    segmentor: Path
    detector: Path
    images: list[Path]


def save_random(config: Path, registry: Registry, path: Path) -> Path:
    """Write a checkpoint with random weights, among them SAPA's that are far from uniform."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    model = registry.build(cfg.model)
    for name, parameter in model.named_parameters():
        if '_proj' in name and 'upsamplers' in name:
            torch.nn.init.normal_(parameter)
    classes = cfg.get('classes', ('thing',))
    meta = dict(dataset_meta=dict(classes=classes, palette=[[9, 9, 9]] * len(classes)))
    save_checkpoint(dict(meta=meta, state_dict=model.state_dict()), str(path))
    return path


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('visualize')
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    images = []
    for name, shape in (('square', (64, 64, 3)), ('wide', (47, 90, 3))):
        images.append(folder / f'{name}.png')
        Image.fromarray(generator.integers(0, 256, shape).astype(np.uint8)).save(images[-1])
    return Inputs(
        save_random(SEGMENTOR, SEGMENTORS, folder / 'segmentor.pth'),
        save_random(DETECTOR, DETECTORS, folder / 'detector.pth'),
        images,
    )


def run(inputs: Inputs, out: Path, *options: object, config: Path = SEGMENTOR) -> None:
    checkpoint = inputs.detector if config == DETECTOR else inputs.segmentor
    arguments = [config, checkpoint, *inputs.images, '--out-dir', out, *options]
    tool.main([str(argument) for argument in arguments])


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert('RGB'))


def test_a_picture_a_step_and_a_sheet(inputs, tmp_path, capsys):
    out = tmp_path / 'new' / 'pictures'
    one = inputs._replace(images=inputs.images[1:])
    run(one, out)
    expected = [f'wide_{name}.png' for name in (*STEPS, 'steps')]
    assert names(out) == sorted(expected)
    printed = capsys.readouterr().out.splitlines()[-len(expected) :]
    assert printed == [str(out / name) for name in expected]
    sizes = {read(out / f'wide_{step}.png').shape for step in STEPS}
    assert len(sizes) == 1
    assert read(out / 'wide_steps.png').shape[0] > next(iter(sizes))[0]


def test_the_pictures_are_those_of_the_checkpoint(inputs, tmp_path):
    options = ['--steps', 'c2_c1', 'c3_c2', '--features', 'first3']
    options += ['--position', '-2', '1', '--position', '0', '0']
    run(inputs, tmp_path / 'out', *options)
    stems = [path.stem for path in inputs.images]
    expected = [f'{stem}_{name}.png' for stem in stems for name in ('c3_c2', 'c2_c1', 'steps')]
    assert names(tmp_path / 'out') == sorted(expected)
    model = init_model(str(SEGMENTOR), str(inputs.segmentor), device='cpu')
    with record_upsampling(model, ['c3_c2', 'c2_c1']) as recording:
        sample = inference_model(model, str(inputs.images[0]))
    image = input_image(recording.inputs, model.data_preprocessor)
    assert np.array_equal(image, read(inputs.images[0]))
    others = (image, outline_prediction(image, sample), [(-2, 1), (0, 0)], 'first3')
    for name, step in recording.steps.items():
        figure = draw_upsampling(step, *others)
        got = read(tmp_path / 'out' / f'square_{name}.png')
        assert np.array_equal(got, figure_to_rgb(figure))
    sheet = draw_upsampling_steps(list(recording.steps.values()), *others)
    assert np.array_equal(read(tmp_path / 'out' / 'square_steps.png'), figure_to_rgb(sheet))


def test_a_sheet_of_several_models(inputs, tmp_path):
    torch.manual_seed(1)
    other = save_random(SEGMENTOR, SEGMENTORS, tmp_path / 'other.pth')
    one = inputs._replace(images=inputs.images[:1])
    run(one, tmp_path / 'out', '--beside', SEGMENTOR, other, '--features', 'first3')
    assert names(tmp_path / 'out') == ['square_models.png']
    steps = []
    for checkpoint in (inputs.segmentor, other):
        model = init_model(str(SEGMENTOR), str(checkpoint), device='cpu')
        with record_upsampling(model) as recording:
            inference_model(model, str(inputs.images[0]))
        step = recording.steps['c2_c1']
        steps.append(dataclasses.replace(step, name=f'{SEGMENTOR.stem}\nc2_c1'))
    image = input_image(recording.inputs, model.data_preprocessor)
    sheet = draw_upsampling_steps(steps, image, features='first3', own_scales=True)
    assert np.array_equal(read(tmp_path / 'out' / 'square_models.png'), figure_to_rgb(sheet))


def test_models_are_named_by_what_they_do_not_share():
    configs = ['a/net_sapa-b_1xb4_toy.py', 'a/net_bilinear_1xb8_toy.py']
    assert tool.short_names(configs) == {
        configs[0]: 'sapa-b\n1xb4',
        configs[1]: 'bilinear\n1xb8',
    }
    assert tool.short_names(['net_toy.py']) == {'net_toy.py': 'net_toy'}


def test_a_detector(inputs, tmp_path):
    one = inputs._replace(images=inputs.images[:1])
    run(one, tmp_path, '--steps', 'c3_c2', config=DETECTOR)
    assert names(tmp_path) == ['square_c3_c2.png', 'square_steps.png']
    picture = read(tmp_path / 'square_c3_c2.png')
    # The sixth column holds no prediction.
    height, width = picture.shape[:2]
    assert (picture[height // 8 : height // 3, round(0.85 * width) :] == 255).all()


@pytest.mark.parametrize(
    ('name', 'channels'), [('yolox_s_sapa-b_8xb8', 16), ('rtmdet_s_sapa-b_8xb32', 32)]
)
def test_the_necks_of_yolox_and_rtmdet(inputs, tmp_path, name, channels):
    widths = [channels, 2 * channels, 4 * channels]
    model = dict(
        backbone=dict(widen_factor=widths[0] / 256, init_cfg=None),
        neck=dict(in_channels=widths, out_channels=8),
        bbox_head=dict(in_channels=8, feat_channels=8),
    )
    config = tmp_path / 'small.py'
    config.write_text(f'_base_ = {str(CONFIGS / name)!r} + "-300e_coco.py"\nmodel = {model}\n')
    checkpoint = save_random(config, DETECTORS, tmp_path / 'small.pth')
    one = inputs._replace(segmentor=checkpoint, images=inputs.images[:1])
    run(one, tmp_path / 'out', config=config)
    expected = ['square_c2_c1.png', 'square_c3_c2.png', 'square_steps.png']
    assert names(tmp_path / 'out') == expected


def test_sliding_windows_are_shown_whole(inputs, tmp_path):
    config = tmp_path / 'slide.py'
    test_cfg = 'dict(mode="slide", crop_size=(32, 32), stride=(16, 16))'
    config.write_text(f'_base_ = {str(SEGMENTOR)!r}\nmodel = dict(test_cfg={test_cfg})\n')
    one = inputs._replace(images=inputs.images[:1])
    run(one, tmp_path / 'slide', '--steps', 'c4_c3', config=config)
    run(one, tmp_path / 'whole', '--steps', 'c4_c3')
    slide, whole = (read(tmp_path / name / 'square_c4_c3.png') for name in ('slide', 'whole'))
    assert np.array_equal(slide, whole)


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.main(['--help'])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for word in ('CONFIG', 'CHECKPOINT', 'IMAGE', '--out-dir', '--device', '--steps', '--position'):
        assert word in text


def refused(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture, *options: str, **config: Path
) -> str:
    """Return the sentence with which the tool refuses, having written nothing."""
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(SystemExit) as stopped:
        run(inputs, tmp_path / 'out', *options, **config)
    assert stopped.value.code == 2
    assert sorted(tmp_path.rglob('*')) == before
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('what', ['config', 'checkpoint', 'image'])
def test_missing_files(inputs, tmp_path, capsys, what):
    missing = tmp_path / 'missing.py'
    config = dict(config=missing) if what == 'config' else {}
    if what == 'checkpoint':
        inputs = inputs._replace(segmentor=missing)
    if what == 'image':
        inputs = inputs._replace(images=[inputs.images[0], missing])
    sentence = refused(inputs, tmp_path, capsys, **config)
    assert str(missing) in sentence and 'no ' in sentence


def test_a_checkpoint_that_is_none(inputs, tmp_path, capsys):
    broken = tmp_path / 'broken.pth'
    broken.write_text('no weights')
    sentence = refused(inputs._replace(segmentor=broken), tmp_path, capsys)
    assert f'error: {broken} is no file of weights, or holds more than weights' in sentence


def test_a_checkpoint_without_the_upsamplers_weights(inputs, tmp_path, capsys):
    stock = save_random(STOCK, SEGMENTORS, tmp_path / 'stock.pth')
    sentence = refused(inputs._replace(segmentor=stock), tmp_path, capsys)
    assert f'{stock} has no weights for upsamplers of {SEGMENTOR}' in sentence
    assert 'decode_head.upsamplers.c4_c3.query_proj.weight' in sentence
    assert f'sapa-mm train {SEGMENTOR} --cfg-options load_from={stock}' in sentence


def test_a_model_without_upsamplers(inputs, tmp_path, capsys):
    sentence = refused(inputs, tmp_path, capsys, config=STOCK)
    assert str(STOCK) in sentence
    assert 'expected one with upsamplers' in sentence and 'SegformerHead' in sentence


def test_an_unknown_step(inputs, tmp_path, capsys):
    sentence = refused(inputs, tmp_path, capsys, '--steps', 'c2_c1', 'c1_c0')
    assert 'c4_c3, c4_c2, c4_c1, c3_c2, c3_c1, c2_c1' in sentence and "'c1_c0'" in sentence


def test_a_position_outside_the_window(inputs, tmp_path, capsys):
    sentence = refused(inputs, tmp_path, capsys, '--position', '0', '-3')
    assert sentence.endswith(
        '--position: expected offsets from -2 to 2 in the window of 5 x 5 of c4_c3, got 0 -3'
    )


def test_images_that_would_share_a_name(inputs, tmp_path, capsys):
    inputs = inputs._replace(images=[inputs.images[0], inputs.images[0]])
    assert 'square twice' in refused(inputs, tmp_path, capsys)


def test_an_image_that_is_none(inputs, tmp_path, capsys):
    broken = tmp_path / 'broken.png'
    broken.write_text('no picture')
    assert str(broken) in refused(inputs._replace(images=[broken]), tmp_path, capsys)


def test_the_folder_is_a_file(inputs, tmp_path, capsys):
    (tmp_path / 'out').write_text('')
    assert f'got the file {tmp_path / "out"}' in refused(inputs, tmp_path, capsys)
