import json
from pathlib import Path

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

from sapa_mm.tools.benchmark import command as benchmark
from sapa_mm.tools.errors import ToolError

ROOT = Path(__file__).resolve().parents[2]

STOCK = ROOT / 'configs' / '_base_' / 'segformer_mit-t_1xb8-600_toy-160x160.py'
CLUSTERING = ROOT / 'configs' / 'hc' / 'hcfcn-32-tiny_r18-l3_1xb8-600_toy-160x160.py'
SIZE = (64, 96)
CLASSES, EMBED = 11, 64


def write_configs(folder: Path) -> list[Path]:
    """SegFormer, a net that does not cluster, and the same one with three levels."""
    narrow = 'stem_channels=16, base_channels=16'
    texts = {
        'segformer': f'_base_ = {str(STOCK)!r}\n',
        'plain': f'_base_ = {str(CLUSTERING)!r}\nmodel = dict(type="EncoderDecoder", '
        f'backbone=dict(levels=0, {narrow}), decode_head=dict(in_channels=128))\n',
        'clustering': "_base_ = './plain.py'\nmodel = dict(backbone=dict(levels=3))\n",
    }
    paths = [folder / f'{name}.py' for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text)
    return paths


def build(path: Path) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(Config.fromfile(path).model).eval()


def parameters(path: Path) -> int:
    return sum(p.numel() for p in build(path).parameters())


def flops(path: Path) -> int:
    """By mmengine's counter alone."""
    analyzer = FlopAnalyzer(build(path), (torch.rand(1, 3, *SIZE),))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analyzer.total()


def clustering_flops() -> int:
    """What three levels add: projections, similarities and decoding, 9 clusters a point."""
    total = 0
    for stride, points, clusters in ((4, 16, 32), (8, 32, 64), (16, 64, 128)):
        high = (SIZE[0] // stride) * (SIZE[1] // stride)
        total += high * points * EMBED + high // 4 * clusters * EMBED
        total += high * 9 * (EMBED + CLASSES)
    return total


def run(*options: object) -> int:
    return benchmark.main([*map(str, options), '--rounds', '1', '--device', 'cpu'])


def test_models_beside_the_first(tmp_path, capsys):
    paths = write_configs(tmp_path)
    out = tmp_path / 'models.json'
    assert run('--models', *paths, '--image-size', *SIZE, '--json', out) == 0
    printed = capsys.readouterr()
    record = json.loads(out.read_text())
    assert record['environment']['torch'] == torch.__version__
    assert (record['batch'], record['size']) == (1, list(SIZE))
    assert list(record) == ['environment', 'batch', 'size', 'models']
    rows = record['models']
    for row in rows:
        assert list(row) == [
            'config',
            'parameters',
            'flops',
            'ms',
            'ms_min_max',
            'time_over_first',
            'flops_over_first',
        ]
    assert [row['config'] for row in rows] == list(map(str, paths))
    assert [row['parameters'] for row in rows] == list(map(parameters, paths))
    segformer, plain, clustering = (row['flops'] for row in rows)
    assert (segformer, plain) == (flops(paths[0]), flops(paths[1]))
    assert clustering == plain + clustering_flops()
    assert (rows[0]['time_over_first'], rows[0]['flops_over_first']) == (1, 1)
    for row in rows:
        low, high = row['ms_min_max']
        assert 0 < low == row['ms'] == high  # of one round
        assert row['flops_over_first'] == pytest.approx(row['flops'] / segformer)
        assert row['time_over_first'] == pytest.approx(row['ms'] / rows[0]['ms'])
        name, giga = Path(row['config']).stem, row['flops'] / 1e9
        line = f'| {name} | {row["parameters"]:,} | {giga:.1f} ({row["flops_over_first"]:.2f}x) | '
        assert line in printed.out
    assert '1 x 3 x 64 x 96, float32' in printed.out
    # A round to warm up, and the one that counts.
    expected = [f'[{i}/1] {path}' for i in range(2) for path in paths]
    assert [line for line in printed.err.splitlines() if line.startswith('[')] == expected


def test_size_and_batch(tmp_path, capsys):
    path = write_configs(tmp_path)[0]
    out = tmp_path / 'models.json'
    assert run('--models', path, '--image-size', 32, 32, '--batch', 2, '--json', out) == 0
    record = json.loads(out.read_text())
    assert (record['batch'], record['size']) == (2, [32, 32])
    assert record['models'][0]['flops'] < flops(path)  # of one image, and a smaller one
    assert '2 x 3 x 32 x 32' in capsys.readouterr().out


@pytest.mark.parametrize(
    'options, message',
    [
        (
            ['--models', CLUSTERING, '--shapes', 'small'],
            'argument --shapes: not allowed with',
        ),
        (['--models', CLUSTERING, '--plot', 'x.png'], 'argument --plot: not allowed with --models'),
        (['--models', CLUSTERING, '--size', 8, 8], 'argument --size: not allowed with --models'),
        (['--models', CLUSTERING, '--dtypes', 'float16'], 'argument --dtypes: not allowed with'),
        (['--image-size', 64, 64], 'argument --image-size: not allowed without --models'),
        (['--models', CLUSTERING, '--image-size', 0, 64], 'argument --image-size: '),
        (['--models', CLUSTERING, '--image-size', 64], 'argument --image-size: expected 2'),
        (['--models'], 'argument --models: expected at least one argument'),
    ],
)
def test_refused_options(options, message, tmp_path, capsys):
    out = tmp_path / 'models.json'
    with pytest.raises(SystemExit) as stopped:
        run(*options, '--json', out)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1]
    assert printed.out == ''
    assert not out.exists()


@pytest.mark.parametrize(
    'config, message',
    [
        ('no_such.py', "CONFIG: no file 'no_such.py'"),
        ('mmseg::no_such', "mmseg installs no config 'no_such.py'"),
        ('mmfoo::fcn', "got 'mmfoo::fcn'"),
    ],
)
def test_unknown_configs(config, message, tmp_path, capsys):
    out = tmp_path / 'models.json'
    # Before the models that there are run.
    with pytest.raises(ToolError) as refused:
        run('--models', CLUSTERING, config, '--json', out)
    assert message in str(refused.value)
    printed = capsys.readouterr()
    assert printed.out == printed.err == ''
    assert not out.exists()


def test_a_model_that_cannot_be_built(tmp_path):
    path, out = tmp_path / 'broken.py', tmp_path / 'models.json'
    path.write_text(f'_base_ = {str(CLUSTERING)!r}\nmodel = dict(backbone=dict(levels=7))\n')
    with pytest.raises(ToolError, match='levels') as refused:
        run('--models', path, '--image-size', *SIZE, '--json', out)
    assert str(path) in str(refused.value)
    assert not out.exists()
