import copy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from matplotlib import image as mpimg
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import save_checkpoint
from mmseg.registry import MODELS
from PIL import Image
from scipy.io import savemat
from testing_superpixels import stripes, write_stripe_model

from sapa_mm.segmentation import image_superpixels
from sapa_mm.tools import superpixels as tool
from sapa_mm.tools.toy_dataset import command as toy
from sapa_mm.visualization import draw_superpixels
from sapa_mm.visualization.superpixels import COLOUR

ROOT = Path(__file__).resolve().parents[2]

CONFIG = ROOT / 'configs' / 'hc' / 'hcfcn-32-tiny_r18-l3_1xb8-600_toy-160x160.py'
STOCK = ROOT / 'configs' / 'sapa' / 'segformer_mit-t_bilinear_1xb8-600_toy-160x160.py'
HEIGHT, WIDTH = 96, 128
LEVELS = 3
DPI = 150
PANEL = 2.4  # inches


class Inputs(NamedTuple):
    """A model with its checkpoint, and files of two images."""

    model: torch.nn.Module
    checkpoint: Path
    images: list[Path]


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('superpixels')
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIG)
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model).eval()
    model.init_weights()
    for name, parameter in model.backbone.clusterings.named_parameters():
        torch.nn.init.normal_(parameter, std=1.0)
        assert name.endswith('weight')
    meta = dict(dataset_meta=dict(classes=cfg.classes, palette=[[9, 9, 9]] * len(cfg.classes)))
    checkpoint = folder / 'model.pth'
    save_checkpoint(dict(meta=meta, state_dict=model.state_dict()), str(checkpoint))

    options = toy.Options(num_train=1, num_val=1, size=(HEIGHT, WIDTH), layouts=('ade',))
    toy.make_dataset(folder / 'toy', options)
    (scene,) = (folder / 'toy' / 'ade' / 'images' / 'training').iterdir()
    # Red is beside blue, so that exchanged channels show.
    halves = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    halves[:, : WIDTH // 2, 0] = halves[:, WIDTH // 2 :, 2] = 200
    Image.fromarray(halves).save(folder / 'halves.png')
    return Inputs(model, checkpoint, [scene, folder / 'halves.png'])


def run(inputs: Inputs, out: Path, *options: object, config: Path = CONFIG) -> None:
    arguments = [config, inputs.checkpoint, *inputs.images, '--out', out, *options]
    tool.main([str(argument) for argument in arguments])


def read(path: Path) -> np.ndarray:
    """Read a picture, (H, W, 3) of floats from 0 to 1."""
    return mpimg.imread(path)[..., :3]


def spans(inside: np.ndarray) -> list[tuple[int, int]]:
    """Return where runs of True begin and end."""
    edges = np.flatnonzero(np.diff(inside.astype(int), prepend=0, append=0))
    return list(zip(edges[::2], edges[1::2], strict=True))


def find_panels(picture: np.ndarray) -> list[list[np.ndarray]]:
    """Return the panels row by row; what is high enough is no title."""
    ink = (picture < 0.99).any(-1)
    rows = [(a, b) for a, b in spans(ink.any(1)) if b - a > 100]
    return [[picture[a:b, c:d] for c, d in spans(ink[a:b].mean(0) > 0.5)] for a, b in rows]


def marked(panel: np.ndarray) -> int:
    """Count the pixels in the boundaries' colour."""
    return int((np.abs(panel - COLOUR) < 0.02).all(-1).sum())


def test_a_row_an_image_and_a_column_a_level(inputs, tmp_path, capsys):
    out = tmp_path / 'picture.png'
    run(inputs, out)
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    assert [path.name for path in tmp_path.iterdir()] == ['picture.png']
    picture = read(out)
    height = 2 * PANEL * HEIGHT / WIDTH + 0.3
    assert picture.shape == (round(DPI * height), round(DPI * PANEL * (1 + LEVELS)), 3)
    panels = find_panels(picture)
    assert [len(row) for row in panels] == [1 + LEVELS] * 2
    for row in panels:
        assert marked(row[0]) == 0
        # Levels go from fine to coarse: coarser clusters have fewer boundaries.
        counts = [marked(panel) for panel in row[1:]]
        assert counts == sorted(counts, reverse=True)
        assert len(set(counts)) == LEVELS and counts[-1] > 0
    halves = panels[1][0]
    middle = halves.shape[1] // 2
    left, right = halves[:, : middle - 4].mean((0, 1)), halves[:, middle + 4 :].mean((0, 1))
    assert np.abs(left - [200 / 255, 0, 0]).max() < 0.01
    assert np.abs(right - [0, 0, 200 / 255]).max() < 0.01


def test_the_superpixels_are_those_of_the_checkpoint(inputs, tmp_path):
    run(inputs, tmp_path / 'got.png')
    meta = dict(img_shape=(HEIGHT, WIDTH), ori_shape=(HEIGHT, WIDTH))
    images = [np.asarray(Image.open(path).convert('RGB')) for path in inputs.images]

    def draw(model: torch.nn.Module, path: Path) -> np.ndarray:
        found = []
        for image in images:
            bgr = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
            with torch.no_grad():
                data = model.data_preprocessor(dict(inputs=[bgr]))['inputs']
                (levels,) = image_superpixels(model, data, [meta])
            found.append({stride: level.numpy() for stride, level in levels.items()})
        assert list(found[0]) == [8, 16, 32]
        draw_superpixels(path, images, found)
        return read(path)

    got = read(tmp_path / 'got.png')
    # The decoder of a JPEG may round a pixel differently.
    assert (np.abs(got - draw(inputs.model, tmp_path / 'expected.png')) < 0.1).mean() > 0.999
    other = copy.deepcopy(inputs.model)
    torch.nn.init.normal_(other.backbone.clusterings['layer4'].query_proj.weight)
    assert (np.abs(got - draw(other, tmp_path / 'other.png')) < 0.1).mean() < 0.999


def test_help():
    command = [sys.executable, str(ROOT / 'tools' / 'superpixels.py'), '--help']
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for word in (
        'CONFIG',
        'CHECKPOINT',
        'IMAGE',
        '--out',
        '--device',
        'superpixels.png',
        '--curve',
        '--annotations',
    ):
        assert word in result.stdout


def refused(
    inputs: Inputs,
    out: Path,
    capsys: pytest.CaptureFixture,
    options: tuple[str, ...] = (),
    **config: Path,
) -> str:
    """Return the sentence with which the tool refuses, having written nothing."""
    before = sorted(out.parent.parent.rglob('*'))
    with pytest.raises(SystemExit) as stopped:
        run(inputs, out, *options, **config)
    assert stopped.value.code == 2
    assert sorted(out.parent.parent.rglob('*')) == before
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('what', ['config', 'checkpoint', 'image'])
def test_missing_files(inputs, tmp_path, capsys, what):
    missing = tmp_path / 'missing'
    options = dict(config=missing) if what == 'config' else {}
    if what == 'checkpoint':
        inputs = inputs._replace(checkpoint=missing)
    if what == 'image':
        inputs = inputs._replace(images=[inputs.images[0], missing])
    sentence = refused(inputs, tmp_path / 'picture.png', capsys, **options)
    assert str(missing) in sentence and 'no ' in sentence


@pytest.mark.parametrize('levels', [None, 0])
def test_a_backbone_that_does_not_cluster(inputs, tmp_path, capsys, levels):
    config = STOCK
    if levels is not None:
        config = tmp_path / 'config.py'
        config.write_text(f'_base_ = {str(CONFIG)!r}\nmodel = dict(backbone=dict(levels=0))\n')
    sentence = refused(inputs, tmp_path / 'picture.png', capsys, config=config)
    assert 'HCResNet with levels of at least 1, got' in sentence
    assert ('MixVisionTransformer' if levels is None else '0') in sentence


def test_an_image_that_is_none(inputs, tmp_path, capsys):
    broken = tmp_path / 'broken.png'
    broken.write_text('no picture')
    inputs = inputs._replace(images=[broken])
    assert str(broken) in refused(inputs, tmp_path / 'picture.png', capsys)


def test_a_checkpoint_that_is_none(inputs, tmp_path, capsys):
    broken = tmp_path / 'broken.pth'
    broken.write_text('no weights')
    sentence = refused(inputs._replace(checkpoint=broken), tmp_path / 'picture.png', capsys)
    assert f'error: {broken} is no file of weights, or holds more than weights' in sentence


def test_a_checkpoint_without_the_clusterings_weights(inputs, tmp_path, capsys):
    checkpoint = torch.load(inputs.checkpoint, weights_only=False)
    state = checkpoint['state_dict']
    lacking = [key for key in state if '.clusterings.' in key]
    for key in lacking:
        del state[key]
    stock = tmp_path / 'stock.pth'
    save_checkpoint(checkpoint, str(stock))
    sentence = refused(inputs._replace(checkpoint=stock), tmp_path / 'picture.png', capsys)
    assert f'{stock} has no weights for upsamplers of {CONFIG}' in sentence
    assert 0 < len(lacking) <= 12 and all(key in sentence for key in lacking)
    assert f'load_from={stock}' in sentence


def test_the_folder_of_the_picture_is_missing(inputs, tmp_path, capsys):
    out = tmp_path / 'missing' / 'picture.png'
    assert str(out.parent) in refused(inputs, out, capsys)


def test_a_picture_of_no_known_kind(inputs, tmp_path, capsys):
    assert '.pig' in refused(inputs, tmp_path / 'picture.pig', capsys)


@pytest.fixture(scope='module')
def stripe_model(tmp_path_factory):
    return write_stripe_model(tmp_path_factory.mktemp('stripes'), 'elsewhere', 50)


def write_annotations(path: Path, *maps: np.ndarray) -> Path:
    cells = np.empty((1, len(maps)), object)
    for k, segments in enumerate(maps):
        cells[0, k] = {'Segmentation': segments}
    savemat(path, {'groundTruth': cells})
    return path


def test_superpixels_of_the_numbers_asked_for(inputs, stripe_model, tmp_path):
    """A column a number, with the superpixels that the model finds in each image."""
    config, checkpoint = stripe_model
    stripe_inputs = inputs._replace(checkpoint=checkpoint)
    run(stripe_inputs, tmp_path / 'got.png', '--numbers', 4, 16, config=config)
    images = [np.asarray(Image.open(path).convert('RGB')) for path in inputs.images]
    levels = [{f'{n} asked for': stripes(image, n, 50) for n in (4, 16)} for image in images]
    draw_superpixels(tmp_path / 'expected.png', images, levels)
    got, expected = read(tmp_path / 'got.png'), read(tmp_path / 'expected.png')
    assert got.shape == expected.shape
    # The decoder of a JPEG may round a pixel differently.
    assert (np.abs(got - expected) < 0.1).mean() > 0.998
    # Its own number without the option is one.
    run(stripe_inputs, tmp_path / 'own.png', config=config)
    assert [len(row) for row in find_panels(read(tmp_path / 'own.png'))] == [2, 2]


def test_leakage_of_an_annotator_is_red(inputs, stripe_model, tmp_path):
    config, checkpoint = stripe_model
    halves = inputs.images[1]
    # The first annotator agrees with the halves and the second has another quarter.
    first = np.ones((HEIGHT, WIDTH), np.uint16)
    first[:, WIDTH // 2 :] = 2
    second = first.copy()
    second[: HEIGHT // 4, : WIDTH // 2] = 3
    file = write_annotations(tmp_path / 'a.mat', first, second)
    one = inputs._replace(checkpoint=checkpoint, images=[halves])

    def red_share(*options: object) -> list[float]:
        numbers = ('--numbers', '2', '8')
        run(one, tmp_path / 'got.png', *numbers, *options, config=config)
        (panels,) = find_panels(read(tmp_path / 'got.png'))
        return [float((np.abs(panel - (1, 0, 0)) < 0.02).all(-1).mean()) for panel in panels]

    assert red_share() == [0, 0, 0]
    assert red_share('--annotations', file) == [0, 0, 0]
    shares = red_share('--annotations', file, '--annotator', 1)
    # An eighth of the image, but for the lines over it.
    assert shares[0] == 0
    assert shares[1] == pytest.approx(1 / 8, abs=0.01)
    assert shares[2] == pytest.approx(1 / 8, abs=0.02)


def test_annotations_that_do_not_fit(inputs, stripe_model, tmp_path, capsys):
    config, checkpoint = stripe_model
    one = inputs._replace(checkpoint=checkpoint, images=inputs.images[:1])
    good = write_annotations(tmp_path / 'good.mat', np.ones((HEIGHT, WIDTH), np.uint16))
    turned = write_annotations(tmp_path / 'turned.mat', np.ones((WIDTH, HEIGHT), np.uint16))
    out = tmp_path / 'picture.png'

    def sentence(*options: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(one, out, *options, config=config)
        assert stopped.value.code == 2
        assert not out.exists()
        return capsys.readouterr().err.splitlines()[-1]

    assert 'one for each of the 1 images, got 2' in sentence('--annotations', good, good)
    assert 'missing.mat: no such file' in sentence('--annotations', tmp_path / 'missing.mat')
    assert '(96, 128), got (128, 96)' in sentence('--annotations', turned)
    assert '0 to 0' in sentence('--annotations', good, '--annotator', 1)
    assert 'got -1' in sentence('--annotations', good, '--annotator', '-1')
    broken = tmp_path / 'broken.mat'
    broken.write_text('no structure')
    assert "expected a .mat file, got '" in sentence('--annotations', broken)


def test_models_without_superpixels_or_numbers(inputs, stripe_model, tmp_path, capsys):
    sentence = refused(inputs, tmp_path / 'picture.png', capsys, options=('--numbers', '5'))
    assert '--numbers: expected a model that is asked for them, such as SSN' in sentence
    config, checkpoint = stripe_model
    silent = tmp_path / 'silent.py'
    silent.write_text(config.read_text().replace('StripeSegmentor', 'SilentSegmentor'))
    sentence = refused(
        inputs._replace(checkpoint=checkpoint), tmp_path / 'picture.png', capsys, config=silent
    )
    assert 'got SilentSegmentor, which predicts no superpixels' in sentence
