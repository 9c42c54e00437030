import json

import pytest
import torch

from sapa_mm.ops import reference
from sapa_mm.tools.benchmark import clustering
from sapa_mm.tools.benchmark import command as benchmark
from sapa_mm.tools.benchmark.rows import PASSES, NotTimed
from sapa_mm.tools.benchmark.stopwatch import Stopwatch

CPU = torch.device('cpu')


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(clustering, 'SIDE', 24)
    monkeypatch.setattr(clustering, 'GRID', (3, 4))
    monkeypatch.setattr(clustering, 'ITERATIONS', 3)


def test_both_forms_give_the_references_weights(small):
    features = torch.randn(2, 5, 24, 24, dtype=torch.float64)
    expected = reference.soft_slic(features, (3, 4), 3)
    for form in (clustering.by_cell, clustering.dense):
        torch.testing.assert_close(form(features), expected, rtol=0, atol=1e-12)


def test_table_and_json(small, tmp_path, capsys):
    out = tmp_path / 'clustering.json'
    options = ['--soft-slic', '--batch', '2', '--rounds', '1', '--device', 'cpu']
    assert benchmark.main([*options, '--json', str(out)]) == 0
    record = json.loads(out.read_text())
    assert list(record) == ['environment', 'batch', 'clustering']
    assert [row['candidate'] for row in record['clustering']] == [
        clustering.BY_CELL,
        clustering.DENSE,
    ]
    printed = capsys.readouterr().out
    for row in record['clustering']:
        assert 0 < row['error'] < 1e-4
        for label in PASSES:
            assert row[label]['ms'] > 0
            ratio = row[label]['time_over_soft_slic']
            assert f'| {row["candidate"]} | ' in printed
            assert f'{row[label]["ms"]:.0f} ms ({ratio:.2f}x), ' in printed
    assert benchmark.main([*options, '--against', str(out)]) == 0
    assert f'Against {out}' in capsys.readouterr().out


def test_what_is_wrong_is_not_timed(small, monkeypatch):
    monkeypatch.setattr(clustering, 'dense', lambda x: clustering.by_cell(x).roll(1, 1))
    ours, other = clustering.measure_clustering(1, 1, Stopwatch(CPU))
    assert all(isinstance(found, NotTimed) and found.refused for found in other.passes.values())
    assert not any(isinstance(found, NotTimed) for found in ours.passes.values())


def test_refused_options(capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(['--soft-slic', '--shapes', 'fpn'])
    assert stopped.value.code == 2
    assert 'argument --shapes: not allowed with --soft-slic' in capsys.readouterr().err
