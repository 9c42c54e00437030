import json
import math
import os
import subprocess
import sys

import pytest
import torch

from sapa_mm import ops
from sapa_mm.tools.benchmark import command as benchmark
from sapa_mm.tools.benchmark import measure
from sapa_mm.tools.benchmark.candidates import Candidate, candidates
from sapa_mm.tools.benchmark.check import TOLERANCE
from sapa_mm.tools.benchmark.rows import PASSES

TINY = '--size 5 6 --channels 32 --embed 16 --rounds 2'.split()
BLOCKED = ('mmengine', 'mmcv', 'mmseg', 'mmdet', 'matplotlib', 'rich', 'numpy', 'triton')


def test_measures_and_writes(device, tmp_path, capsys):
    out = tmp_path / 'figures.json'
    options = [*TINY, '--dtypes', 'float32', 'bfloat16', '--device', device]  # a GPU compiles
    assert benchmark.main([*options, '--json', str(out)]) == 0
    printed = capsys.readouterr()
    record = json.loads(out.read_text())
    environment = record['environment']
    assert environment['torch'] == torch.__version__
    assert environment['float32_matmul_precision'] == torch.get_float32_matmul_precision()
    assert environment['autotune'] == os.environ.get('SAPA_MM_AUTOTUNE', '1')
    assert f'torch {torch.__version__}, triton {environment["triton"]}' in printed.out
    assert record['shapes'] == [
        dict(name='own', batch=2, height=5, width=6, channels=32, embed=16, ratio=2)
        | dict(kernel_size=5, steps=[])
    ]
    assert 'own: query (2, 16, 10, 12), key (2, 16, 5, 6), value (2, 32, 5, 6), K 5' in printed.out
    assert 'First calls of sapa_mm (compilation, tuning): float32 nchw ' in printed.out
    assert printed.err.count('own bfloat16 channels_last') == 1
    rows = {(r['dtype'], r['layout'], r['candidate']): r for r in record['rows']}
    assert len(rows) == len(record['rows']) == (36 if device == 'cpu' else 40)
    for (dtype, layout, name), row in rows.items():
        assert f'| {dtype} | {layout} | {name} |' in printed.out
        for label in ('forward', 'forward+backward'):
            if name in ('compiled unfold', 'flex_attention') and device == 'cpu':
                expected = {'not_timed': 'only with --compile', 'refused': False}
                assert row[label] == expected
            elif name not in ('flex_attention', 'mmcv CARAFE'):
                assert row['first_call_s'][label] > 0
                assert row[label]['ms'] > 0
                low, high = row[label]['ms_min_max']
                assert low <= row[label]['ms'] <= high
                figures = row[label]
                assert math.isclose(
                    figures['gb_per_s'], figures['least_bytes'] / figures['ms'] / 1e6
                )
                assert 0 < figures['of_copy'] < 10
        if name == 'sapa_mm':
            assert row['forward']['time_over_sapa_mm'] == 1
        if name == 'bilinear':
            assert row['forward+backward']['time_over_bilinear'] == 1
        if name in ('sapa_mm', 'unfold+einsum') or name.endswith(' module'):
            assert 0 < row['error'] < TOLERANCE[dtype]
    if device == 'cpu':
        reason = 'not timed: mmcv has it for GPUs only'
        assert (
            f'| bfloat16 | nchw | mmcv CARAFE | {reason} | - | - | - | - | - | - | - |'
            in printed.out
        )


def test_keys_of_the_json(tmp_path):
    out = tmp_path / 'figures.json'
    options = ['--device', 'cpu', '--layouts', 'nchw', '--json', str(out)]
    assert benchmark.main([*TINY, *options]) == 0
    record = json.loads(out.read_text())
    assert list(record) == ['environment', 'shapes', 'rows']
    about = ['date', 'device', 'torch', 'triton', 'sapa_mm', 'float32_matmul_precision', 'autotune']
    assert list(record['environment']) == about
    (shape,) = record['shapes']
    sizes = ['name', 'batch', 'height', 'width', 'channels', 'embed', 'ratio', 'kernel_size']
    assert list(shape) == [*sizes, 'steps']
    rows = {row['candidate']: row for row in record['rows']}
    common = ['shape', 'dtype', 'layout', 'candidate', 'first_call_s']
    labels = ['forward', 'forward+backward']
    assert list(rows['sapa_mm']) == [*common, 'error', *labels]
    assert list(rows['sapa_mm'].values())[:4] == ['own', 'float32', 'nchw', 'sapa_mm']
    assert list(rows['sapa_mm']['first_call_s']) == labels
    for name in ('bilinear', 'mmcv CARAFE'):  # what is not checked has no error
        assert list(rows[name]) == [*common, *labels]
    for label in labels:
        assert list(rows['sapa_mm'][label]) == [
            'extra_bytes',
            'peak_bytes',
            'peak_over_bilinear',
            'ms',
            'ms_min_max',
            'launch_ms',
            'time_over_sapa_mm',
            'time_over_bilinear',
            'least_bytes',
            'gb_per_s',
            'copy_gb_per_s',
            'of_copy',
        ]
        assert list(rows['mmcv CARAFE'][label]) == ['not_timed', 'refused']
    assert rows['mmcv CARAFE']['first_call_s'] == {}


def test_torch_is_enough():
    code = (
        f'import sys\nfor name in {BLOCKED}: sys.modules[name] = None\n'
        'from sapa_mm.tools.cli import run\nsys.exit(run("benchmark"))'
    )
    # torch warns of the missing numpy, where it does.
    command = [sys.executable, '-W', 'ignore', '-c', code, *TINY]
    command += ['--device', 'cpu', '--layouts', 'nchw']
    # Importing the benchmark sets it here too.
    environment = {k: v for k, v in os.environ.items() if k != 'KINETO_LOG_LEVEL'}
    options = dict(capture_output=True, text=True, env=environment)
    result = subprocess.run(command, timeout=120, **options)
    assert result.returncode == 0, result.stderr
    assert 'profiler_start' not in result.stderr
    assert '| float32 | nchw | unfold+einsum | ' in result.stdout
    module = [line for line in result.stdout.splitlines() if '| SAPA-B module |' in line]
    assert len(module) == 1
    assert 'not timed' not in module[0]
    plot = subprocess.run([*command, '--plot', 'x.png'], **options)
    assert plot.returncode == 2
    assert 'argument --plot: needs matplotlib' in plot.stderr
    assert plot.stdout == ''


def add_candidates(monkeypatch, *added):
    def more(shape, *args):
        found = candidates(shape, *args)
        exact = found[0].exact
        return [*found, *(Candidate(n, f, exact=exact) for n, f in added)]

    monkeypatch.setattr(measure, 'candidates', more)


def test_what_is_wrong_is_not_timed(monkeypatch, tmp_path, capsys):
    def wrong(query, key, value):
        return ops.point_affiliation(query, 1.001 * key, value)

    class WrongGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.nan

    def wrong_backward(query, key, value):
        return ops.point_affiliation(query, key, WrongGradient.apply(value))

    add_candidates(monkeypatch, ('wrong', wrong), ('wrong backward', wrong_backward))
    out, plot = tmp_path / 'figures.json', tmp_path / 'plot.png'
    options = [*TINY, '--device', 'cpu', '--layouts', 'nchw', '--json', str(out)]
    assert benchmark.main([*options, '--plot', str(plot)]) == 1
    printed = capsys.readouterr()
    assert 'wrong is not timed: its error ' in printed.err
    assert 'exceeds 1e-05 (own, float32, nchw)' in printed.err
    assert 'wrong backward is not timed: its error nan exceeds' in printed.err
    rows = {row['candidate']: row for row in json.loads(out.read_text())['rows']}
    for name in ('wrong', 'wrong backward'):
        for label in PASSES:
            assert rows[name][label].keys() == {'not_timed', 'refused'}
            assert rows[name][label]['refused'] is True
        assert f'| float32 | nchw | {name} | not timed: its error ' in printed.out
    assert rows['SAPA-B module']['forward']['ms'] > 0  # the others are
    assert plot.stat().st_size > 0


def test_what_cannot_run_says_why(monkeypatch, tmp_path, capsys):
    def broken(query, key, value):
        try:
            raise KeyError('a cause')
        except KeyError as cause:
            raise RuntimeError('an error\nof two lines | with a bar') from cause

    def huge(query, key, value):
        return torch.empty(2**48)

    def forward_only(query, key, value):
        if query.requires_grad:
            raise NotImplementedError('no | backward\nat all')
        return ops.point_affiliation(query, key, value)

    calls = []

    def breaks_when_timed(query, key, value):
        calls.append(0)
        if len(calls) > 3:
            raise ValueError('late')
        return ops.point_affiliation(query, key, value)

    added = [('broken', broken), ('huge', huge), ('forward only', forward_only)]
    add_candidates(monkeypatch, *added, ('late', breaks_when_timed))
    out = tmp_path / 'figures.json'
    options = [*TINY, '--device', 'cpu', '--layouts', 'nchw', '--json', str(out)]
    assert benchmark.main(options) == 0  # ours is right and was timed
    rows = {row['candidate']: row for row in json.loads(out.read_text())['rows']}
    assert rows['broken']['forward']['not_timed'] == "KeyError: 'a cause'"
    assert rows['huge']['forward+backward']['not_timed'] == 'out of memory'
    assert rows['forward only']['forward']['ms'] > 0
    assert rows['forward only']['first_call_s'].keys() == {'forward'}
    reason = 'NotImplementedError: no / backward'
    assert rows['forward only']['forward+backward'] == {'not_timed': reason, 'refused': False}
    assert f' | not timed: {reason} | - | - | - |' in capsys.readouterr().out
    assert rows['late']['forward'] == {'not_timed': 'ValueError: late', 'refused': False}


def test_ours_that_cannot_run_is_a_failure(monkeypatch, capsys):
    def without_ours(*args):
        _, *others = candidates(*args)
        return [Candidate('sapa_mm', reason='none here'), *others]

    monkeypatch.setattr(measure, 'candidates', without_ours)
    assert benchmark.main([*TINY, '--device', 'cpu', '--layouts', 'nchw']) == 1
    printed = capsys.readouterr()
    assert 'sapa_mm is not timed: none here (own, float32, nchw)' in printed.err
    unfold = next(line for line in printed.out.splitlines() if '| unfold+einsum |' in line)
    assert ' ms (-x), ' in unfold


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--rounds 0', 'argument --rounds: expected a positive int, got 0'),
        ('--batch x', 'argument --batch: expected a positive int, got x'),
        ('--kernel-size 4', 'argument --kernel-size: expected an odd positive int, got 4'),
        ('--shapes tiny', "argument --shapes: invalid choice: 'tiny'"),
        ('--dtypes float64', "argument --dtypes: invalid choice: 'float64'"),
        ('--shapes fpn --kernel-size 3', 'argument --kernel-size: not allowed with --shapes'),
        ('--size 3 3 --shapes fpn', 'argument --size: not allowed with --shapes'),
        ('--device cuda:99', 'argument --device: expected a device that is there, got cuda:99'),
        ('--device meta', 'argument --device: expected cpu, cuda or cuda:N, got meta'),
        ('--device gpu', 'argument --device: expected cpu, cuda or cuda:N, got gpu'),
        ('--plot plot.mp3', 'argument --plot: expected a file that ends in one of'),
        ('--plot nowhere/plot.png', 'expected a file in an existing folder, got nowhere/plot.png'),
        ('--json nowhere/a.json', 'expected a file in an existing folder, got nowhere/a.json'),
    ],
)
def test_bad_options(options, message, capsys):
    with pytest.raises(SystemExit) as error:
        benchmark.main(options.split())
    assert error.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ''
