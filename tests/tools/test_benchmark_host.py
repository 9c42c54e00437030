import json
import time

import pytest
import torch

from sapa_mm.tools.benchmark import command as benchmark
from sapa_mm.tools.benchmark import host
from sapa_mm.tools.benchmark.candidates import Candidate
from sapa_mm.tools.benchmark.measure import draw
from sapa_mm.tools.benchmark.rows import PASSES, NotTimed

CPU = torch.device('cpu')
NAMES = ['sapa_mm', 'bilinear', 'SAPA-I module', 'SAPA-B module', 'SAPA-G module']


def test_table_and_json(device, tmp_path, capsys):
    out = tmp_path / 'host.json'
    options = ['--host', '--rounds', '2', '--device', device, '--json', str(out)]
    assert benchmark.main(options) == 0
    printed = capsys.readouterr().out
    assert '(1, 256, 16, 16) to (1, 256, 32, 32), host time of a call' in printed
    record = json.loads(out.read_text())
    assert list(record) == ['environment', 'host']
    rows = {(row['autocast'], row['candidate']): row for row in record['host']}
    assert list(rows) == [(autocast, name) for autocast in (False, True) for name in NAMES]
    for (autocast, name), row in rows.items():
        assert list(row) == ['candidate', 'autocast', *PASSES]
        line = f'| {name} | {"yes" if autocast else "no"} | '
        for label in PASSES:
            found = row[label]
            low, high = found['us_min_max']
            assert 0 < low <= found['us'] <= high
        ratio = row['forward']['time_over_bilinear']
        assert name != 'bilinear' or ratio == 1
        assert f'{line}{row["forward"]["us"]:.0f} us ({ratio:.1f}x) | ' in printed
        # A backward comes on top.
        assert row['forward']['us'] < row['forward+backward']['us']


def test_time_is_that_of_one_call():
    calls = []

    def call():
        calls.append(0)
        time.sleep(0.004)

    assert 0.004 <= host.repeatedly(call, 10, CPU) < 0.012
    assert len(calls) == 10


def test_only_the_forward_runs_under_autocast():
    seen = []

    class Noting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(torch.is_autocast_enabled('cpu'))
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(torch.is_autocast_enabled('cpu'))
            return grad

    weight = torch.ones(4, 4, requires_grad=True)
    plain = Candidate(
        'x', lambda value: Noting.apply(value) @ weight, ('value',), parameters=(weight,)
    )
    candidate = host.under_autocast(plain, CPU)
    (out,) = candidate.run({'value': torch.ones(4, 4)}, None)
    assert out.dtype == torch.float16
    _, grad, weight_grad = candidate.run({'value': torch.ones(4, 4)}, torch.ones_like(out))
    assert (grad.dtype, weight_grad.dtype) == (torch.float32, torch.float32)
    assert seen == [True, True, False]


def test_one_that_cannot_run_says_why():
    bilinear = next(c for c in host.contestants(CPU, False) if c.name == 'bilinear')
    tensors = draw(host.SHAPE, {'value'}, torch.float32, 'nchw', CPU)
    missing = Candidate('missing', reason='not installed')
    found = host.time_calls([missing, bilinear], 'forward', tensors, 1)
    assert found['missing'] == NotTimed('not installed')
    assert found['bilinear'].time_over_bilinear == 1


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--shapes fpn', 'argument --shapes: not allowed with --host'),
        ('--batch 3', 'argument --batch: not allowed with --host'),
        ('--candidates bilinear', 'argument --candidates: not allowed with --host'),
        ('--models x.py', 'argument --models: not allowed with --host'),
        ('--dtypes float16', 'argument --dtypes: not allowed with --host'),
    ],
)
def test_refused_options(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(['--host', *options.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--shapes gpu fpn', 'argument --shapes: expected gpu alone'),
        ('--candidates sapa', "argument --candidates: invalid choice: 'sapa'"),
    ],
)
def test_refused_choices(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(options.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
