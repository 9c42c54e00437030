"""What the tools that know all models do with matting networks."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import save_checkpoint

from sapa_mm.matting import predict_alpha
from sapa_mm.tools import compare, complexity, export, swap, visualize
from sapa_mm.tools.benchmark import command as benchmark
from sapa_mm.tools.configs import read_config
from sapa_mm.tools.inference import load_model
from sapa_mm.visualization import (
    draw_upsampling_steps,
    figure_to_rgb,
    input_image,
    outline_prediction,
    prediction_title,
    record_upsampling,
)

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FULL = 'matting_r34-pool_{}_1xb16-180k_composition1k-512x512.py'
TINY = CONFIGS / 'matting' / 'matting-tiny_bilinear_1xb8-400_toy-96x96.py'
SEGMENTOR = CONFIGS / '_base_' / 'segformer_mit-t_1xb8-600_toy-160x160.py'
STEPS = ['c2_c1', 'c3_c2', 'c4_c3', 'c5_c4']
HEIGHT, WIDTH = 40, 56


def call(tool: object, *arguments: object) -> int | None:
    return tool.main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture, tool: object, *arguments: object) -> str:
    """Return the sentence with which a tool refuses."""
    with pytest.raises(SystemExit) as stopped:
        call(tool, *arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_complexity_counts_the_full_network(tmp_path, capsys):
    paths = [CONFIGS / 'matting' / FULL.format(name) for name in ('bilinear', 'sapa-b')]
    out = tmp_path / 'complexity.json'
    call(complexity, *paths, '--shape', 32, 48, '--json', out)
    printed = capsys.readouterr().out
    bilinear, sapa = json.loads(out.read_text())['models']
    assert bilinear['params'] == 8_049_003
    assert '8,049,003' in printed and 'image 4 x 32 x 48' in printed
    # By Table 2 of SAPA's paper: two projections with bias of C to 32, and norms of C both.
    expected = {'c5_c4': 256, 'c4_c3': 128, 'c3_c2': 64, 'c2_c1': 64}
    added = {step: 2 * (32 * c + 32) + 2 * 2 * c for step, c in expected.items()}
    assert {step['name']: step['params'] for step in sapa['steps']} == added
    assert sapa['params'] - bilinear['params'] == sum(added.values()) == 35_072
    sizes = {step['name']: step['sizes'] for step in sapa['steps']}
    assert sizes['c2_c1'] == [[[16, 24], [32, 48]]]
    assert all(step['exact'] and step['flops'] > 0 for step in sapa['steps'])


def test_swap(tmp_path, capsys):
    out = tmp_path / 'guided.py'
    call(swap, TINY, '--upsampler', 'sapa-b', '-o', out)
    assert 'parameters: +8,960' in capsys.readouterr().out
    expected = Config.fromfile(TINY).to_dict()
    expected['custom_imports'] = dict(imports=['sapa_mm'], allow_failed_imports=False)
    expected['model']['upsample_cfg'] = dict(type='SAPA', similarity='bilinear')
    assert Config.fromfile(out).to_dict() == expected
    assert MODELS.build(Config.fromfile(out).model).downsample == 'max_pool'


def test_swap_to_an_upsampler_that_downsamples(tmp_path, capsys):
    out = tmp_path / 'paired.py'
    call(swap, TINY, '--upsampler', 'a2u-paired', '-o', out)
    net = MODELS.build(Config.fromfile(out).model).eval()
    assert net.downsample == 'paired'
    # Its encoder halves by the upsampler that leads back: its kernels tell.
    x = torch.randn(1, 4, 32, 32)
    calls = []
    for step, upsampler in net.upsamplers.items():
        downsample = upsampler.downsample
        upsampler.downsample = lambda *args, step=step, call=downsample: (
            calls.append(step) or call(*args)
        )
    with torch.no_grad():
        net(x)
    assert calls == STEPS  # from the finest on
    capsys.readouterr()
    other = tmp_path / 'other.py'
    sentence = refused(capsys, swap, SEGMENTOR, '--upsampler', 'a2u-paired', '-o', other)
    assert 'GuidedSegformerHead does not downsample' in sentence
    assert not other.exists()


def save_random(config: Path, path: Path) -> Path:
    model = MODELS.build(Config.fromfile(config).model)
    for name, parameter in model.named_parameters():
        if '_proj' in name and 'upsamplers' in name:
            torch.nn.init.normal_(parameter)
    save_checkpoint(dict(meta={}, state_dict=model.state_dict()), str(path))
    return path


@pytest.fixture
def inputs(tmp_path):
    """Config, checkpoint, images and trimaps, in a folder beside what is drawn."""
    config, folder = TINY.with_name(TINY.name.replace('bilinear', 'sapa-b')), tmp_path / 'in'
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    trimap = np.full((HEIGHT, WIDTH), 127, np.uint8)
    trimap[:, :9], trimap[:4] = 0, 255
    images, trimaps = [], []
    for i in range(2):
        images.append(folder / f'image{i}.png')
        trimaps.append(folder / f'trimap{i}.png')
        cv2.imwrite(str(images[i]), np.roll(pixels, i, 1))
        cv2.imwrite(str(trimaps[i]), trimap)
    return config, save_random(config, folder / 'random.pth'), images, trimaps


def size_of(path: Path) -> tuple[int, ...]:
    return cv2.imread(str(path)).shape


def test_visualize(inputs, tmp_path):
    config, checkpoint, images, trimaps = inputs
    out = tmp_path / 'out'
    call(visualize, config, checkpoint, *images, '--trimaps', *trimaps, '--out-dir', out)
    expected = [f'image{i}_{name}.png' for i in (0, 1) for name in [*STEPS, 'steps']]
    assert sorted(path.name for path in out.iterdir()) == sorted(expected)
    # The pictures show what the network does to the image and this trimap.
    model = load_model(read_config(str(config)), checkpoint, 'cpu')
    trimap = np.where(cv2.imread(str(trimaps[0]), 0) == 127, np.uint8(128), np.uint8(255))
    trimap[4:, :9] = 0
    with record_upsampling(model) as recording:
        sample = predict_alpha(model, cv2.imread(str(images[0])), trimap)
    seen = input_image(recording.inputs, model.data_preprocessor)
    assert np.abs(seen[..., ::-1].astype(int) - cv2.imread(str(images[0]))).max() <= 1
    sheet = draw_upsampling_steps(
        list(recording.steps.values()),
        seen,
        outline_prediction(seen, sample, None),
        prediction_title=prediction_title(sample, None),
    )
    got = cv2.imread(str(out / 'image0_steps.png'))[..., ::-1]
    assert np.array_equal(got, figure_to_rgb(sheet))
    assert {size_of(out / f'image0_{step}.png')[1] for step in STEPS} == {1560}
    # The trimap counts: with another one, alpha and features differ.
    cv2.imwrite(str(trimaps[0]), np.full((HEIGHT, WIDTH), 128, np.uint8))
    other = tmp_path / 'other'
    call(visualize, config, checkpoint, images[0], '--trimaps', trimaps[0], '--out-dir', other)
    pictures = [cv2.imread(str(folder / 'image0_c2_c1.png')) for folder in (out, other)]
    assert not np.array_equal(*pictures)


def test_visualize_beside(inputs, tmp_path):
    config, checkpoint, images, trimaps = inputs
    beside = [TINY, save_random(TINY, tmp_path / 'in' / 'bilinear.pth')]
    paired = TINY.with_name(TINY.name.replace('bilinear', 'a2u-paired'))
    beside += ['--beside', paired, save_random(paired, tmp_path / 'in' / 'paired.pth')]
    options = ('--trimaps', trimaps[0], '--out-dir', tmp_path / 'out')
    call(visualize, config, checkpoint, images[0], *options, '--beside', *beside)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['image0_models.png']
    call(visualize, config, checkpoint, images[0], *options, '--beside', *beside[:2])


def test_visualize_refuses(inputs, tmp_path, capsys):
    config, checkpoint, images, trimaps = inputs
    start = (visualize, config, checkpoint, *images, '--out-dir', tmp_path / 'out')
    sentence = refused(capsys, *start)
    assert 'a matting network needs the trimap of every image' in (sentence)
    sentence = refused(capsys, *start, '--trimaps', trimaps[0])
    assert '--trimaps: expected one for each of the 2 images, got 1' in sentence
    cv2.imwrite(str(trimaps[1]), np.full((HEIGHT, WIDTH - 1), 128, np.uint8))
    sentence = refused(capsys, *start, '--trimaps', *trimaps)
    assert f'40 x 55 of {trimaps[1]}' in sentence
    assert not (tmp_path / 'out').exists()


def test_benchmark_of_models(tmp_path):
    out = tmp_path / 'models.json'
    options = ('--image-size', 32, 48, '--rounds', 1, '--device', 'cpu', '--json', out)
    assert call(benchmark, '--models', TINY, *options) == 0
    (row,) = json.loads(out.read_text())['models']
    parameters = sum(p.numel() for p in MODELS.build(Config.fromfile(TINY).model).parameters())
    assert row['parameters'] == parameters
    assert row['flops'] > 10**7 and row['ms'] > 0


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
def test_export(tmp_path, capsys, suffix):
    """One file serves all sizes."""
    out = tmp_path / f'matting{suffix}'
    checkpoint = save_random(TINY, tmp_path / 'random.pth')
    call(export, TINY, checkpoint, '--out', out, '--size', 64, 96)
    printed = capsys.readouterr().out
    assert printed.count('verified at') == 2 and 'free: batch, height and width' in printed
    net = MODELS.build(Config.fromfile(TINY).model).eval()
    net.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    if suffix == '.onnx':
        assert {node.domain for node in onnx.load(out).graph.node} == {''}
        session = onnxruntime.InferenceSession(str(out))

        def run(x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(None, {'image': x.numpy()})[0])
    else:
        run = torch.export.load(out).module()
    for size in ((2, 4, 64, 64), (1, 4, 71, 50)):
        x = torch.randn(size)
        with torch.no_grad():
            expected = net(x)
            torch.testing.assert_close(
                run(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item()
            )


def write_data(folder: Path) -> Path:
    """A set of two foregrounds to train on, and of two images to test with."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:64, :64]
    alpha = np.clip(8.0 * (20 - np.hypot(rows - 32, cols - 32)) + 128, 0, 255).astype(np.uint8)
    trimap = np.where((alpha > 0) & (alpha < 255), np.uint8(128), alpha)
    files = {
        'Training_set/fg': None,
        'Training_set/bg': None,
        'Training_set/alpha': alpha,
        'Test_set/merged': None,
        'Test_set/alpha': alpha,
        'Test_set/trimaps': trimap,
    }
    for name, image in files.items():
        (folder / name).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(256, size=(64, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / name / f'{i}.png'), pixels if image is None else image)
    return folder


@pytest.mark.slow
def test_compare(tmp_path, monkeypatch):
    data = write_data(tmp_path / 'data')
    base = tmp_path / 'base.py'
    base.write_text(
        f'_base_ = {str(TINY)!r}\ndata_root = {str(data)!r}\n'
        'train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root))\n'
        'val_dataloader = dict(dataset=dict(data_root=data_root))\n'
        'test_dataloader = val_dataloader\n'
        'train_cfg = dict(max_iters=2, val_interval=2)\n'
    )
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    work = tmp_path / 'work'
    options = ('--upsamplers', 'bilinear,sapa-b', '--seeds', 0, '--jobs', 1, '--images', 2)
    assert call(compare, base, '--work-dir', work, *options, '--image-size', 32, 32) == 0
    text = (work / 'report.md').read_text()
    head = text.split('| upsampler |')[1].splitlines()[0]
    for metric in ('SAD', 'MSE', 'Grad', 'Conn'):
        assert re.search(rf'\| {metric}[^|]* ↓ \|', head), head
    results = {}
    for name in ('bilinear', 'sapa-b'):
        metrics = json.loads((work / name / 'seed0' / 'run.json').read_text())['metrics']
        row = re.search(rf'^\| {name} \| 1 \| (.*) \|$', text, re.M)[1].split(' | ')
        assert row[:4] == [
            f'{metrics["SAD"]:.3f}',
            f'{metrics["MSE"]:.4f}',
            f'{metrics["Grad"]:.3f}',
            f'{metrics["Conn"]:.3f}',
        ]
        results[name] = metrics['SAD']
    best = min(results, key=results.get)
    assert f'By mean SAD: {best} < ' in text
    picture = size_of(work / 'pictures.png')
    # Five columns: the image, its trimap, the truth, and two predictions; two rows an image.
    assert picture[1] == 5 * 360 and picture[0] > 4 * 300
