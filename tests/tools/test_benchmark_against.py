import copy
import json

import pytest

from sapa_mm.tools.benchmark import command as benchmark
from sapa_mm.tools.benchmark.against import changes, read_baseline, report

TINY = '--size 5 6 --channels 32 --embed 16 --rounds 2 --device cpu --layouts nchw'.split()
CHOSEN = ['--candidates', 'sapa_mm', 'bilinear']


def row(candidate, forward, both, layout='nchw'):
    passes = [{'ms': ms} if ms else {'not_timed': 'x', 'refused': False} for ms in (forward, both)]
    names = {'shape': 'a', 'dtype': 'float16', 'layout': layout, 'candidate': candidate}
    return {**names, 'forward': passes[0], 'forward+backward': passes[1]}


def record(*rows, device='One GPU'):
    environment = {'date': '2026-01-02', 'device': device, 'torch': '2.11.0'}
    return {'environment': environment, 'shapes': [], 'rows': list(rows)}


def baseline(folder, *rows):
    path = folder / 'baseline.json'
    path.write_text(json.dumps(record(*rows)))
    return read_baseline(str(path))


def test_changes_beyond_the_tolerance():
    pairs = {
        ('at the limit',): (1.0, 1.25),
        ('little',): (1.0, 1.26),
        ('much',): (2.0, 4.0),
        ('not quite',): (1.0, 0.75),
        ('faster',): (1.0, 0.7),
        ('fastest',): (4.0, 0.5),
    }
    slower, faster = changes(pairs, 25)
    assert slower == [('much',), ('little',)]
    assert faster == [('fastest',), ('faster',)]


def test_rows_are_matched_by_all_their_names(tmp_path, capsys):
    then = baseline(
        tmp_path,
        row('sapa_mm', 1.0, 10.0),
        row('sapa_mm', 5.0, 50.0, 'channels_last'),
        row('bilinear', 2.0, 3.0),
        row('DySample module', None, 4.0),
        row('gone', 1.0, 1.0),
    )
    now = record(
        row('bilinear', 2.08, None),
        row('DySample module', 1.0, 4.0),
        row('sapa_mm', 5.0, 50.0, 'channels_last'),
        row('sapa_mm', 1.2, 8.0),
        row('new', 1.0, 1.0),
    )
    assert report(then, now, 5)
    out = capsys.readouterr().out
    assert out.startswith(f'Against {tmp_path}/baseline.json (2026-01-02):\n')
    assert 'environment' not in out  # it is the same
    assert 'Not timed any more: a float16 nchw bilinear forward+backward.' in out
    slower, faster = out.split('Faster by more than 5%: 1.')
    assert 'Slower by more than 5%: 1.' in slower
    assert '| a float16 nchw sapa_mm forward | 1 | 1.2 | 1.20 |' in slower
    assert '| a float16 nchw sapa_mm forward+backward | 10 | 8 | 0.80 |' in faster
    assert '4 of 6 times are as they were; 2 of the baseline were not asked for, 2 are new.' in out


def test_nothing_slower(tmp_path, capsys):
    then = baseline(tmp_path, row('sapa_mm', 1.0, 10.0))
    now = record(row('sapa_mm', 1.04, 10.4))
    assert not report(then, now, 5)
    out = capsys.readouterr().out
    assert 'Slower by more than 5%: nothing.' in out
    assert 'Faster by more than 5%: nothing.' in out
    assert report(then, now, 3.5)  # no more of it is tolerated


def test_another_environment_is_said_first(tmp_path, capsys):
    then = baseline(tmp_path, row('sapa_mm', 1.0, 10.0))
    now = record(row('sapa_mm', 2.0, 10.0), device='Another GPU')
    now['environment'] |= {'date': '2026-02-03', 'triton': '3.6.0'}
    assert report(then, now, 5)
    told = capsys.readouterr().out.splitlines()[1]
    assert told == (
        'the environment is another: device: One GPU then, Another GPU now; '
        'triton: none then, 3.6.0 now.'
    )


def test_nothing_in_common(tmp_path, capsys):
    then = baseline(tmp_path, row('sapa_mm', 1.0, 10.0))
    assert not report(then, record(row('bilinear', 1.0, 1.0)), 5)
    out = capsys.readouterr().out
    assert 'Nothing in it was timed here: give the options that it was written with.' in out


def test_other_records_are_compared_too(tmp_path, capsys):
    environment = {'date': '2026-01-02'}
    host = {'candidate': 'sapa_mm', 'autocast': True}
    host |= {'forward': {'us': 60.0}, 'forward+backward': {'not_timed': 'x', 'refused': False}}
    step = {'config': 'b1.py', 'dtype': 'float16', 'loss': 1.0}
    step |= {'train step': {'ms': 160.0}, 'prediction': {'ms': 10.0}}
    model = {'config': 'b1.py', 'ms': 8.0}
    size = {'batch': 16, 'size': [64, 96]}
    records = [
        {'environment': environment, 'host': [host]},
        {'environment': environment, **size, 'models': [model]},
        {'environment': environment, **size, 'training': [step]},
    ]
    places = [
        ('autocast sapa_mm forward', 60),
        ('16x64x96 b1.py prediction', 8),
        ('16x64x96 float16 b1.py train step', 160),
    ]
    for old, (place, value) in zip(records, places, strict=True):
        path = tmp_path / 'old.json'
        path.write_text(json.dumps(old))
        text = json.dumps(old).replace(f': {value}.0', f': {2 * value}.0')
        assert report(read_baseline(str(path)), json.loads(text), 5)
        out = capsys.readouterr().out
        assert f'| {place} | {value} | {2 * value} | 2.00 |' in out
        assert ('us then' in out) is ('host' in old)


def test_a_run_against_an_earlier_one(tmp_path, capsys):
    first, second = tmp_path / 'first.json', tmp_path / 'second.json'
    assert benchmark.main([*TINY, *CHOSEN, '--json', str(first)]) == 0
    figures = json.loads(first.read_text())
    for factor, status in ((1e3, 0), (1e-3, 1)):  # how long everything took then
        changed = copy.deepcopy(figures)
        for found in changed['rows']:
            for label in ('forward', 'forward+backward'):
                found[label]['ms'] *= factor
        second.write_text(json.dumps(changed))
        capsys.readouterr()
        against = ['--against', str(second)]
        assert benchmark.main([*TINY, *CHOSEN, *against]) == 0  # it only tells
        out = capsys.readouterr().out
        assert ('Slower by more than 5%: 4.' in out) is (status == 1)
        assert ('Faster by more than 5%: 4.' in out) is (status == 0)
        strict = [*against, '--fail-if-slower', '--tolerance', '50']
        # The file may be replaced by the new figures: it is read before.
        assert benchmark.main([*TINY, *CHOSEN, *strict, '--json', str(second)]) == status
        assert json.loads(second.read_text())['rows'] != changed['rows']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, 'argument --against: no file {path}: --json {path} writes one'),
        ('{', 'which is none (JSONDecodeError): write one anew by --json'),
        ('[]', 'argument --against: expected a file that --json wrote, got {path}'),
        ('{"environment": {}}', 'which is none (ValueError)'),
        ('{"environment": {}, "rows": [{"shape": "a"}]}', 'which is none (KeyError)'),
        ('{"environment": {}, "rows": 3}', 'which is none (TypeError)'),
        (json.dumps(record(row('sapa_mm', -1.0, 1.0))), 'which is none (ValueError)'),
        (json.dumps(record(row('sapa_mm', 'x', 1.0))), 'which is none (TypeError)'),
        (
            '{"environment": {}, "host": []}',
            '{path} holds host times, not figures of operators: give a file that --json wrote',
        ),
    ],
)
def test_bad_files(text, message, tmp_path, capsys):
    path = tmp_path / 'bad.json'
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        benchmark.main([*TINY, '--against', str(path)])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert message.format(path=path) in printed.err
    assert printed.out == ''


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--tolerance 3', 'argument --tolerance: not allowed without --against'),
        ('--tolerance 0', 'argument --tolerance: not allowed without --against'),
        ('--fail-if-slower', 'argument --fail-if-slower: not allowed without --against'),
        ('--tolerance -1', 'argument --tolerance: expected a percentage of at least 0, got -1'),
        ('--tolerance inf', 'expected a percentage of at least 0, got inf'),
        ('--tolerance x', 'expected a percentage of at least 0, got x'),
    ],
)
def test_bad_options(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(options.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
