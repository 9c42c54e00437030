"""`sapa-mm matte`: what it writes, and what it refuses."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import save_checkpoint

from sapa_mm.matting import estimate_foreground, predict_alpha, reduce_trimap
from sapa_mm.tools import matte as tool
from sapa_mm.tools import memory

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / 'configs' / 'matting' / 'matting-tiny_sapa-b_1xb8-400_toy-96x96.py'
SEGMENTOR = ROOT / 'configs' / 'sapa' / 'segformer_mit-t_bilinear_1xb8-600_toy-160x160.py'
HEIGHT, WIDTH = 40, 56


class Inputs(NamedTuple):
    """A network with its files, and an image with its trimap."""

    model: torch.nn.Module
    config: Path
    checkpoint: Path
    image: Path
    trimap: Path


def write(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def make_trimap(*size: int) -> np.ndarray:
    trimap = np.full(size, 127, np.uint8)
    trimap[:, : size[1] // 4] = 0
    trimap[: size[0] // 3, -size[1] // 4 :] = 255
    return trimap


def spread_alpha(model: torch.nn.Module, image: np.ndarray, trimap: np.ndarray) -> None:
    """Let alpha be about .5 on average, and vary; with random weights it is next to a constant."""
    norm, last = model.head[0][1], model.head[1]
    seen = []
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    predict_alpha(model, image, trimap)
    handle.remove()
    norm.running_mean.fill_(seen[0].mean())
    norm.running_var.fill_(seen[0].var())
    norm.bias.data.fill_(1.0)
    last.weight.data.zero_()[..., 1, 1] = 0.5


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('matte')
    torch.manual_seed(0)
    config = folder / 'matting-small_toy-40x56.py'
    config.write_text(
        f'_base_ = {str(TINY)!r}\n'
        'model = dict(backbone=dict(channels=(4, 8, 12)))\n'
        "data_root = 'data/nowhere'\n"
    )
    cfg = Config.fromfile(config)
    model = MODELS.build(cfg.model).eval()
    model.init_weights()
    pixels = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = write(folder / 'image.png', cv2.GaussianBlur(pixels, (5, 5), 0))
    trimap = write(folder / 'trimap.png', make_trimap(HEIGHT, WIDTH))
    spread_alpha(model, read(image), read(trimap))
    checkpoint = folder / 'small.pth'
    save_checkpoint(dict(meta={}, state_dict=model.state_dict()), str(checkpoint))
    return Inputs(model, config, checkpoint, image, trimap)


def arguments(inputs: Inputs, *options: object) -> list[str]:
    own = ['--config', inputs.config, '--checkpoint', inputs.checkpoint]
    return [str(part) for part in (inputs.image, inputs.trimap, *own, *options)]


def run(inputs: Inputs, *options: object) -> int:
    return tool.main(arguments(inputs, *options))


def expected_alpha(inputs: Inputs) -> np.ndarray:
    sample = predict_alpha(inputs.model, read(inputs.image), read(inputs.trimap))
    return sample.pred_alpha.data[0].numpy()


def test_alpha(inputs, tmp_path, capsys):
    out = tmp_path / 'alpha.png'
    assert run(inputs, '-o', out) == 0
    told = capsys.readouterr()
    assert told.out == f'{out}\n'
    assert told.err == ''  # it is neither large nor the default
    assert [path.name for path in tmp_path.iterdir()] == ['alpha.png']
    alpha = read(out)
    assert alpha.dtype == np.uint8 and alpha.shape == (HEIGHT, WIDTH)
    assert np.array_equal(alpha, expected_alpha(inputs))
    assert len(np.unique(alpha)) > 20
    trimap = make_trimap(HEIGHT, WIDTH)
    assert (alpha[trimap == 0] == 0).all() and (alpha[trimap == 255] == 255).all()


def test_cutout_is_the_foreground_with_alpha(inputs, tmp_path):
    run(inputs, '-o', tmp_path / 'alpha.png', '--cutout', tmp_path / 'cutout.png')
    image, cutout, alpha = read(inputs.image), read(tmp_path / 'cutout.png'), expected_alpha(inputs)
    assert cutout.shape == (HEIGHT, WIDTH, 4)
    assert np.array_equal(cutout[..., 3], alpha)
    assert np.array_equal(cutout[..., :3], estimate_foreground(image, alpha))
    # By hand: what is foreground has the image's colours, blue first, and what is mixed others.
    assert np.array_equal(cutout[alpha == 255][:, :3], image[alpha == 255])
    mixed = (alpha > 0) & (alpha < 255)
    assert (cutout[mixed][:, :3] != image[mixed]).mean() > 0.5


def test_composite_on_a_colour(inputs, tmp_path):
    out, cutout = tmp_path / 'composite.png', tmp_path / 'cutout.png'
    run(inputs, '-o', tmp_path / 'a.png', '--cutout', cutout, '--composite', out, '--background',
        '#ff8000')  # fmt: skip
    image, (*fg, a), got = read(inputs.image), np.split(read(cutout), 4, 2), read(out)
    assert np.array_equal(got[:, : WIDTH // 4], np.full((HEIGHT, WIDTH // 4, 3), (0, 128, 255)))
    known = make_trimap(HEIGHT, WIDTH) == 255
    assert np.array_equal(got[known], image[known])
    for channel, colour in enumerate((0, 128, 255)):  # BGR
        exact = (a / 255.0) * fg[channel] + (1 - a / 255.0) * colour
        assert np.abs(got[..., channel] - exact[..., 0]).max() < 0.51


def test_composite_on_an_image(inputs, tmp_path):
    """It is scaled to cover, and what is too much is cropped from both sides."""
    background = np.zeros((20, 48, 3), np.uint8)
    background[:, :10], background[:, -10:] = (255, 0, 0), (0, 0, 255)
    background[:, 10:-10] = (0, 200, 0)
    file = write(tmp_path / 'background.png', background)
    out = tmp_path / 'composite.tif'
    run(inputs, '-o', tmp_path / 'a.png', '--composite', out, '--background', file)
    got = read(out)
    # Twice as large it is 40 x 96, of which columns 20 to 75 remain: the edges of the colours.
    assert got.shape == (HEIGHT, WIDTH, 3)
    assert np.array_equal(got[:, 2 : WIDTH // 4], np.full((HEIGHT, 12, 3), (0, 200, 0)))
    assert (got[:, 0, 0] > 30).all()


def test_a_picture(inputs, tmp_path):
    out = tmp_path / 'picture.png'
    run(inputs, '-o', tmp_path / 'alpha.png', '--picture', out)
    picture = read(out)
    # Three columns of 2.4 inches at 150 dots, and two rows.
    assert picture.shape[1] == 3 * 360
    assert picture.shape[0] > 2 * 200


def test_reduced_for_the_network(inputs, tmp_path, capsys):
    out = tmp_path / 'alpha.png'
    assert run(inputs, '-o', out, '--max-size', 28) == 0
    told = capsys.readouterr().err
    assert 'the network sees 20 x 28 of 40 x 56 (--max-size 28), so fine detail is lost' in told
    image, trimap = read(inputs.image), make_trimap(HEIGHT, WIDTH)
    trimap[trimap == 127] = 128
    small = cv2.resize(image, (28, 20), interpolation=cv2.INTER_AREA)
    sample = predict_alpha(inputs.model, small, reduce_trimap(trimap, (20, 28)))
    expected = cv2.resize(sample.pred_alpha.data[0].numpy(), (WIDTH, HEIGHT))
    expected = np.where(trimap == 128, expected, trimap)
    assert np.array_equal(read(out), expected)
    assert run(inputs, '-o', out, '--max-size', 56) == 0
    assert capsys.readouterr().err == ''
    assert np.array_equal(read(out), expected_alpha(inputs))


@pytest.fixture
def folders(inputs, tmp_path):
    """Three images in a folder, of two formats, with trimaps; the second's is of another size."""
    images, trimaps = tmp_path / 'images', tmp_path / 'trimaps'
    images.mkdir()
    trimaps.mkdir()
    for i, name in enumerate(('a.png', 'b.bmp', 'c.png')):
        write(images / name, np.roll(read(inputs.image), 5 * i, 1))
        size = (HEIGHT, WIDTH + 1) if name == 'b.bmp' else (HEIGHT, WIDTH)
        write(trimaps / f'{name[0]}.png', make_trimap(*size))
    return inputs._replace(image=images, trimap=trimaps)


def test_a_folder_in_which_one_image_is_bad(inputs, folders, tmp_path, capsys):
    alphas, cutouts, composites = (tmp_path / name for name in ('alphas', 'cutouts', 'composites'))
    status = run(
        folders, '-o', alphas, '--cutout', cutouts, '--composite', composites, '--background', 'red'
    )
    assert status == 1
    told = capsys.readouterr()
    assert f'{folders.image / "b.bmp"} failed: expected images of one size' in told.err
    assert '40 x 57' in told.err
    assert told.err.splitlines()[-1] == '1 of 3 images failed'
    assert told.out.split()[-3:] == [str(alphas), str(cutouts), str(composites)]
    for folder in (alphas, cutouts, composites):
        assert sorted(path.name for path in folder.iterdir()) == ['a.png', 'c.png']
    for name in ('a', 'c'):
        one = inputs._replace(image=folders.image / f'{name}.png')
        assert np.array_equal(read(alphas / f'{name}.png'), expected_alpha(one))
        assert read(cutouts / f'{name}.png').shape == (HEIGHT, WIDTH, 4)
        assert read(composites / f'{name}.png')[0, 0].tolist() == [0, 0, 255]


def test_a_folder_without_a_bad_image(folders, tmp_path, capsys):
    write(folders.trimap / 'b.png', make_trimap(HEIGHT, WIDTH))
    assert run(folders, '-o', tmp_path / 'alphas') == 0
    assert 'failed' not in capsys.readouterr().err
    assert len(list((tmp_path / 'alphas').iterdir())) == 3


def refused(inputs: Inputs, capsys: pytest.CaptureFixture, *options: object) -> str:
    """Return the sentence with which the tool refuses, having written nothing in the folder."""
    return refused_with(arguments(inputs, *options), capsys)


def refused_with(options: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as stopped:
        tool.main(options)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_trimaps_that_are_missing(folders, tmp_path, capsys):
    (folders.trimap / 'b.png').unlink()
    sentence = refused(folders, capsys, '-o', tmp_path / 'alphas')
    assert f'got none for {folders.image / "b.bmp"}' in sentence
    assert not (tmp_path / 'alphas').exists()


def test_folders_that_do_not_do(inputs, folders, tmp_path, capsys):
    mixed = folders._replace(trimap=inputs.trimap)
    assert 'two files or two folders' in refused(mixed, capsys, '-o', tmp_path / 'x')
    options = ('-o', tmp_path / 'x', '--picture', tmp_path / 'p.png')
    assert '--picture: expected a single image' in refused(folders, capsys, *options)
    sentence = refused(folders, capsys, '-o', tmp_path / 'none' / 'x')
    assert '-o: expected a folder in an existing one' in sentence
    sentence = refused(folders, capsys, '-o', folders.image)
    assert '-o: expected another path than that of IMAGE' in sentence
    options = ('-o', tmp_path / 'x', '--cutout', tmp_path / 'x')
    assert '--cutout: expected another path than that of -o' in refused(folders, capsys, *options)
    (tmp_path / 'empty').mkdir()
    empty = folders._replace(image=tmp_path / 'empty')
    assert 'IMAGE: expected images' in refused(empty, capsys, '-o', tmp_path / 'x')


def test_output_files_that_cannot_be(inputs, tmp_path, capsys):
    out = tmp_path / 'alpha.png'
    missing = tmp_path / 'none' / 'x.png'
    for option in ('-o', '--cutout'):
        sentence = refused(inputs, capsys, '-o', out, option, missing)
        assert f'{option}: expected a file in an existing folder, got {missing}' in sentence
        sentence = refused(inputs, capsys, '-o', out, option, tmp_path / 'x.jpg')
        assert f'{option}: expected a file that ends in .png' in sentence
    options = ('-o', out, '--background', 'red', '--composite')
    assert 'existing folder' in refused(inputs, capsys, *options, missing)
    assert '.png or .jpg' in refused(inputs, capsys, *options, tmp_path / 'x.gif')
    assert '--picture' in refused(inputs, capsys, '-o', out, '--picture', missing)
    assert 'than that of -o' in refused(inputs, capsys, '-o', out, '--cutout', out)
    assert 'than that of TRIMAP' in refused(inputs, capsys, '-o', inputs.trimap)
    assert not list(tmp_path.iterdir())
    assert read(inputs.trimap).shape == (HEIGHT, WIDTH)


def test_backgrounds(inputs, tmp_path, capsys):
    options = ('-o', tmp_path / 'a.png')
    sentence = refused(inputs, capsys, *options, '--composite', tmp_path / 'c.png')
    assert '--composite: expected --background with it, got none' in sentence
    sentence = refused(inputs, capsys, *options, '--background', 'red')
    assert '--background: expected --composite with it, got none' in sentence
    options += ('--composite', tmp_path / 'c.png', '--background')
    for text in ('redd', '#12', 'none', '#ff000080', tmp_path / 'missing.png'):
        sentence = refused(inputs, capsys, *options, text)
        assert '--background: expected a colour without transparency' in sentence
        assert str(text) in sentence
    (tmp_path / 'broken.png').write_text('no image')
    sentence = refused(inputs, capsys, *options, tmp_path / 'broken.png')
    assert 'broken.png' in sentence and 'expected an image' in sentence


def bad_trimap(kind: str) -> np.ndarray:
    trimap = make_trimap(HEIGHT, WIDTH)
    if kind == 'size':
        return trimap[1:]
    if kind == 'values':
        trimap[3, 4] = 30
    elif kind == 'unknown':
        trimap[trimap == 127] = 255
    elif kind == 'bits':
        return trimap.astype(np.uint16) * 257
    else:
        trimap = np.dstack([trimap, trimap, 255 - trimap])
    return trimap


@pytest.mark.parametrize(
    ('kind', 'told'),
    [
        ('size', 'expected images of one size (height x width), got 40 x 56'),
        ('values', '1 pixels of 30'),
        ('unknown', 'expected a trimap with unknown pixels (128), got none'),
        ('bits', 'expected an image of 8 bits a channel, got uint16'),
        ('channels', 'three that differ'),
    ],
)
def test_bad_trimaps(inputs, tmp_path, capsys, kind, told):
    trimap = write(tmp_path / 'bad.png', bad_trimap(kind))
    sentence = refused(inputs._replace(trimap=trimap), capsys, '-o', tmp_path / 'alpha.png')
    assert told in sentence and 'bad.png' in sentence
    assert [path.name for path in tmp_path.iterdir()] == ['bad.png']


def test_bad_images(inputs, tmp_path, capsys):
    out = ('-o', tmp_path / 'alpha.png')
    missing = tmp_path / 'missing.png'
    told = f'{missing}: no such file'
    assert told in refused(inputs._replace(image=missing), capsys, *out)
    assert told in refused(inputs._replace(trimap=missing), capsys, *out)
    deep = write(tmp_path / 'deep.png', np.zeros((HEIGHT, WIDTH, 3), np.uint16))
    assert 'uint16' in refused(inputs._replace(image=deep), capsys, *out)
    broken = tmp_path / 'broken.png'
    broken.write_text('no image')
    assert 'broken.png' in refused(inputs._replace(image=broken), capsys, *out)


def test_bad_models(inputs, tmp_path, capsys):
    out = ('-o', tmp_path / 'alpha.png')
    sentence = refused(inputs._replace(config=SEGMENTOR), capsys, *out)
    assert '--config: expected a GuidedMattingNet, got EncoderDecoder' in sentence
    missing = tmp_path / 'missing.pth'
    assert str(missing) in refused(inputs._replace(checkpoint=missing), capsys, *out)
    # It is wider, in its upsamplers and beside them.
    sentence = refused(inputs._replace(config=TINY), capsys, *out)
    assert f'{inputs.checkpoint} has weights of other upsamplers than {TINY}' in sentence
    state = inputs.model.state_dict()
    lacking = tmp_path / 'lacking.pth'
    without = {key: value for key, value in state.items() if not key.startswith('aspp.join')}
    save_checkpoint(dict(meta={}, state_dict=without), str(lacking))
    sentence = refused(inputs._replace(checkpoint=lacking), capsys, *out)
    assert f'{lacking} does not fit {inputs.config}' in sentence
    assert not (tmp_path / 'alpha.png').exists()
    assert 'positive int' in refused(inputs, capsys, *out, '--max-size', 0)
    assert 'expected cpu, cuda' in refused(inputs, capsys, *out, '--device', 'mps')


def test_the_latest_checkpoint_is_the_default(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [str(inputs.image), str(inputs.trimap), '--config', str(inputs.config)]
    options += ['-o', str(tmp_path / 'alpha.png')]
    folder = Path('work_dirs') / inputs.config.stem
    sentence = refused_with(options, capsys)
    assert f'--checkpoint: expected one, as there is none in {folder}' in sentence
    assert 'no trained weights are published' in sentence
    assert f'{tool.TOY_DATA} && sapa-mm train {inputs.config}' in sentence
    Path('data/nowhere').mkdir(parents=True)
    sentence = refused_with(options, capsys)
    assert f'to train: sapa-mm train {inputs.config}' in sentence
    folder.mkdir(parents=True)
    (folder / 'iter_1.pth').write_bytes(inputs.checkpoint.read_bytes())
    (folder / 'last_checkpoint').write_text('/elsewhere/iter_1.pth')
    assert tool.main(options) == 0
    assert np.array_equal(read(tmp_path / 'alpha.png'), expected_alpha(inputs))


def test_the_default_network(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [str(inputs.image), str(inputs.trimap), '-o', str(tmp_path / 'alpha.png')]
    sentence = refused_with(options, capsys)
    assert f'sapa-mm train sapa_mm::matting/{TINY.name}' in sentence
    model = MODELS.build(Config.fromfile(TINY).model)
    save_checkpoint(dict(meta={}, state_dict=model.state_dict()), str(tmp_path / 'tiny.pth'))
    assert tool.main([*options, '--checkpoint', str(tmp_path / 'tiny.pth')]) == 0
    assert 'it is not for real pictures' in capsys.readouterr().err


def test_more_memory_than_is_free(inputs, folders, tmp_path, capsys, monkeypatch):
    """No image that a test can hold takes that much, so less is said to be free."""
    needed = memory.estimate_memory(inputs.model, (HEIGHT, WIDTH))
    monkeypatch.setattr(memory, 'free_memory', lambda device: needed - 1)
    sentence = refused(inputs, capsys, '-o', tmp_path / 'alpha.png')
    assert f'{inputs.image}: about 0.0 GiB of memory for 40 x 56, and 0.0 GiB are free on cpu' in (
        sentence
    )
    assert 'pass --max-size 48, which loses fine detail' in sentence
    assert '--device cpu' not in sentence
    assert run(inputs, '-o', tmp_path / 'alpha.png', '--max-size', 48) == 0
    capsys.readouterr()
    assert run(folders, '-o', tmp_path / 'alphas') == 1
    assert '3 of 3 images failed' in capsys.readouterr().err
    assert not (tmp_path / 'alphas').exists()
    monkeypatch.setattr(memory, 'free_memory', lambda device: 1000)
    sentence = refused(inputs, capsys, '-o', tmp_path / 'alpha.png')
    assert sentence.endswith('cpu: free some')


def test_a_large_image_is_told_of(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, 'LARGE', 2**10)
    assert run(inputs, '-o', tmp_path / 'alpha.png') == 0
    assert f'{inputs.image}: about 0.0 GiB of memory for 40 x 56\n' == capsys.readouterr().err


RUN_OUT = """
import resource, sys
from sapa_mm.tools import matte, memory
estimate = memory.estimate_memory
def limited(model, size):
    needed = estimate(model, size)
    taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + needed // 4, -1))
    memory.estimate_memory = estimate
    return needed
memory.estimate_memory = limited
matte.main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_runs_out_all_the_same(inputs, tmp_path):
    size = (1000, 1200)
    image = write(tmp_path / 'large.png', np.zeros((*size, 3), np.uint8))
    trimap = write(tmp_path / 'trimap.png', make_trimap(*size))
    large = inputs._replace(image=image, trimap=trimap)
    command = [sys.executable, '-W', 'ignore', '-c', RUN_OUT]
    command += arguments(large, '-o', tmp_path / 'alpha.png')
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert result.returncode == 2, result.stderr
    sentence = result.stderr.splitlines()[-1]
    assert 'for 1000 x 1200 were too much: pass --max-size' in sentence
    assert not (tmp_path / 'alpha.png').exists()


def test_help():
    command = [sys.executable, str(ROOT / 'tools' / 'matte.py'), '--help']
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for word in ('IMAGE', 'TRIMAP', '--cutout', '--composite', '--max-size', 'real pictures'):
        assert word in result.stdout
