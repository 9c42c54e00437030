import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / 'tools' / 'benchmark.py'


@pytest.fixture(scope='module')
def benchmark():
    spec = importlib.util.spec_from_file_location('sapa_mm_benchmark', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_measures_and_writes(tmp_path):
    out = tmp_path / 'figures.json'
    options = '--size 8 8 --channels 32 --embed 8 --rounds 2 --threads 1 --dtypes float32 bfloat16'
    result = subprocess.run(
        [sys.executable, SCRIPT, *options.split(), '--device', 'cpu', '--json', out],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    record = json.loads(out.read_text())
    assert record['environment']['torch'] == torch.__version__
    rows = {(r['dtype'], r['layout'], r['candidate']): r for r in record['rows']}
    assert len(rows) == 12
    for (dtype, layout, candidate), row in rows.items():
        assert f'| {dtype} | {layout} | {candidate} |' in result.stdout
        assert all(row[label]['ms'] > 0 for label in ('forward', 'forward+backward'))
        if candidate == 'sapa_mm':
            assert row['forward']['time_over_sapa_mm'] == 1
            assert 0 < row['error'] < 1e-2


def test_the_formula_it_is_compared_with_is_right(benchmark):
    inputs = [torch.randn(2, 4, 6, 9), torch.randn(2, 4, 3, 3), torch.randn(2, 5, 3, 3)]
    for kernel_size in (1, 3, 5):
        ours, unfold = list(benchmark.candidates(kernel_size).values())[:2]
        torch.testing.assert_close(unfold(*inputs), ours(*inputs), rtol=1e-5, atol=1e-5)


def test_memory_is_at_most_an_eighth_of_unfolds(benchmark):
    sizes = [(1, 16, 48, 48), (1, 16, 24, 24), (1, 128, 24, 24), (1, 128, 48, 48)]
    *inputs, grad = (torch.randn(size) for size in sizes)
    ours, unfold = list(benchmark.candidates(5).values())[:2]
    for g in (None, grad):
        extra = [benchmark.extra_memory(f, inputs, g) for f in (ours, unfold)]
        assert 0 < 8 * extra[0] <= extra[1]


def test_what_is_wrong_is_not_timed(benchmark):
    sizes = [(2, 4, 6, 6), (2, 4, 3, 3), (2, 5, 3, 3), (2, 5, 6, 6)]
    *inputs, grad = (torch.randn(size) for size in sizes)
    ours = benchmark.candidates(3)['sapa_mm']
    assert benchmark.check('ours', ours, inputs, grad, 3) < 1e-5
    with pytest.raises(SystemExit, match='wrong is not timed: its error'):
        benchmark.check('wrong', lambda q, k, v: ours(q, 1.001 * k, v), inputs, grad, 3)


def test_bad_options():
    result = subprocess.run(
        [sys.executable, SCRIPT, '--rounds', '0'], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert 'argument --rounds: expected a positive int, got 0' in result.stderr
