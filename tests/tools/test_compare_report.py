"""What reports of comparisons say of differences, disturbed runs and accuracy over time."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from sapa_mm.tools.compare import curves, report
from sapa_mm.tools.compare.differences import difference, differences_table, interval_of_mean
from sapa_mm.tools.compare.disturbance import disturbances
from sapa_mm.tools.compare.history import History, Logging, logged_memory, read_history
from sapa_mm.tools.compare.variants import Variant, style

COST = dict(parameters=1, flops=1e9, ms=2.0, time_over_first=1.0)
ITERATIONS = Logging(100, False, 10, False)


def variant(name: str, scores: dict[int, float], metric: str = 'mIoU', **more: object) -> Variant:
    results = {
        seed: dict(metrics={metric: score}, memory=2**20, seconds=0.5)
        for seed, score in scores.items()
    }
    return Variant(name, results, COST, **more)


def test_the_interval_is_students():
    # The mean of 1, 2, 6 is 3 and s² = (4 + 1 + 9) / 2 = 7; t(0.975, 2) = 4.302653 of tables.
    half = 4.302653 * (7 / 3) ** 0.5
    assert interval_of_mean([1.0, 2.0, 6.0]) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    # t(0.975, 1) = 12.7062; of 1 and 2 s / √2 is 1/2.
    assert interval_of_mean([1.0, 2.0]) == pytest.approx((1.5 - 6.3531, 1.5 + 6.3531), abs=1e-4)


@pytest.mark.parametrize(
    ('scores', 'metric', 'verdict'),
    [
        ({0: 51.0, 1: 51.1, 2: 51.2}, 'mIoU', 'gain'),
        ({0: 49.0, 1: 48.9, 2: 48.8}, 'mIoU', 'loss'),
        ({0: 51.0, 1: 51.1, 2: 51.2}, 'rmse', 'loss'),
        ({0: 49.0, 1: 48.9, 2: 48.8}, 'rmse', 'gain'),
        ({0: 51.0, 1: 56.0, 2: 52.0}, 'mIoU', 'undecided'),
        ({0: 50.0, 1: 50.0, 2: 50.0}, 'mIoU', 'undecided'),
        ({1: 51.0, 7: 99.0}, 'mIoU', 'one seed'),
        ({0: 51.0, 1: 51.1, 2: math.nan}, 'mIoU', 'undecided'),
        ({0: math.inf, 1: 51.1, 2: 51.2}, 'rmse', 'undecided'),
    ],
)
def test_verdicts(scores, metric, verdict):
    baseline = variant('bilinear', {0: 50.0, 1: 50.0, 2: 50.0}, metric)
    assert difference(variant('sapa-b', scores, metric), baseline, metric).verdict == verdict


def test_what_is_not_finite_is_reported(tmp_path):
    both = [
        variant('bilinear', {0: 2.0, 1: 3.0}, 'rmse'),
        variant('fade', {0: 1.0, 1: math.nan}, 'rmse'),
    ]
    report.write_report(tmp_path, 'Title', [], {'iterations': both}, False)
    text = (tmp_path / 'report.md').read_text()
    assert '| fade | 2 | nan ± nan |' in text
    assert '| fade | -1.000 | +nan | +nan ± nan | +nan to +nan | undecided |' in text


def test_the_table_of_differences_is_paired():
    baseline = variant('bilinear', {0: 40.0, 1: 60.0})
    both = [
        baseline,
        variant('carafe', {0: 41.0, 1: 62.0}),
        variant('fade', {1: 59.5}),
        variant('a2u', {}),
    ]
    lines = differences_table(both, baseline, 'mIoU').splitlines()
    assert lines[0] == (
        '| mIoU, less bilinear | seed 0 | seed 1 | mean | 95 % interval | verdict |'
    )
    assert lines[2:] == [
        '| carafe | +1.00 | +2.00 | +1.50 ± 0.71 | -4.85 to +7.85 | undecided |',
        '| fade | - | -0.50 | -0.50 | - | one seed |',
    ]
    assert differences_table([baseline, variant('a2u', {2: 1.0})], baseline, 'mIoU') is None


def write_scalars(folder: Path, attempt: str, *records: dict) -> None:
    path = folder / attempt / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))


def trained(step: int, time: float) -> dict:
    return dict(lr=0.1, loss=1.0, time=time, data_time=0.01, iter=step, step=step)


def test_records_of_all_attempts_are_read(tmp_path):
    write_scalars(
        tmp_path,
        '20260101_000000',
        trained(10, 9.0),  # the beginning
        trained(20, 0.2),
        trained(30, 0.2),
        dict(mIoU=30.0, time=0.1, data_time=0.1, step=30),
        trained(40, 7.0),  # the iterations from 31 on, the first of which waited for the metrics
        trained(50, 0.3),
        dict(mIoU=99.0, step=60),
    )
    write_scalars(
        tmp_path,
        '20260101_010000',
        trained(50, 8.0),  # the beginning again, where the first attempt has what is steady
        trained(60, 0.2),
        dict(mIoU=40.0, step=60),
        trained(75, 0.4),  # its window of 10 iterations begins after 65
    )
    path = tmp_path / '20260101_010000' / 'vis_data' / 'scalars.json'
    path.write_text(path.read_text() + '{"loss": 1.0, "ti')  # as a kill leaves it
    history = read_history(tmp_path, ITERATIONS)
    assert history.steady == {20: 0.2, 30: 0.2, 50: 0.3, 60: 0.2, 75: 0.4}
    assert history.times.keys() == {10, 20, 30, 40, 50, 60, 75}
    assert {step: found['mIoU'] for step, found in history.validations.items()} == {30: 30, 60: 40}
    assert history.median() == 0.2 and history.end == 100
    # 10 · median + 20 · 0.2 + 10 · median + 10 · 0.3 + 10 · 0.2 + 15 · 0.4 + 25 · median.
    assert history.seconds(100) == pytest.approx(2 + 4 + 2 + 3 + 2 + 6 + 5)
    assert history.seconds(45) == pytest.approx(2 + 4 + 2 + 1.5)


def test_overlapping_windows_are_left_out_at_the_beginning(tmp_path):
    write_scalars(tmp_path, '1', *(trained(step, 0.1 * step) for step in range(1, 15)))
    assert read_history(tmp_path, ITERATIONS).steady.keys() == {11, 12, 13, 14}


def test_validations_of_epochs_come_after_their_iterations(tmp_path):
    (tmp_path / 'log.txt').write_text('... Epoch(train)  [1][20/37]  lr: 1\n')
    write_scalars(
        tmp_path,
        '1',
        *(trained(20, 0.5), {'coco/bbox_mAP': 0.2, 'step': 1}),
        *(trained(57, 0.5), {'coco/bbox_mAP': 0.3, 'step': 2}),
    )
    logging = Logging(3, True, 10, True)
    history = read_history(tmp_path, logging)
    assert history.validations.keys() == {37, 74} and history.end == 111
    found = curves.curve(Variant('a', {}, COST, {0: history}), 'coco/bbox_mAP')
    np.testing.assert_allclose(found, [(18.5, 20.0), (37.0, 30.0)])


def test_validations_whose_records_name_no_iteration_come_when_they_are_due(tmp_path):
    scores = iter([30.0, 40.0, 50.0])
    write_scalars(
        tmp_path,
        '1',
        *(trained(20, 0.5), trained(40, 0.5), dict(mIoU=next(scores), step=0)),
        *(trained(60, 0.5), trained(80, 0.5), dict(mIoU=next(scores), step=0)),
        dict(mIoU=next(scores), step=0),  # of the end
    )
    found = read_history(tmp_path, Logging(83, False, 10, True, 41)).validations
    assert {step: found[step]['mIoU'] for step in found} == {41: 30.0, 82: 40.0, 83: 50.0}
    # Records may be rarer than validations, or as frequent.
    write_scalars(tmp_path / 'rare', '1', *[dict(mIoU=1.0, step=0)] * 2, trained(50, 0.5))
    history = read_history(tmp_path / 'rare', Logging(100, False, 10, True, 20))
    assert history.validations.keys() == {20, 40}
    same = [trained(20, 0.5), dict(mIoU=1.0, step=0), trained(40, 0.5), dict(mIoU=1.0, step=0)]
    write_scalars(tmp_path / 'same', '1', *same)
    history = read_history(tmp_path / 'same', Logging(100, False, 10, True, 20))
    assert history.validations.keys() == {20, 40}


def test_the_memory_of_a_gpu_is_the_most_of_all_attempts(tmp_path):
    assert logged_memory(tmp_path) == 0
    write_scalars(tmp_path, '1', {**trained(10, 0.1), 'memory': 300}, dict(mIoU=1.0, step=10))
    write_scalars(tmp_path, '2', {**trained(20, 0.1), 'memory': 200}, trained(30, 0.1))
    assert logged_memory(tmp_path) == 300 * 2**20


def test_what_logs_count_is_read_from_the_config():
    cfg = Config(dict(train_cfg=dict(max_epochs=12)))
    assert Logging.of(cfg) == (12, True, 10, True, 1) and Logging.of(cfg).text == '12 epochs'
    cfg = Config(
        dict(
            train_cfg=dict(max_iters=1600, val_interval=400),
            log_processor=dict(window_size=50),
            default_hooks=dict(logger=dict(log_metric_by_epoch=False)),
        )
    )
    assert Logging.of(cfg) == (1600, False, 50, False, 400)
    assert Logging.of(cfg).text == '1,600 iterations'
    assert Logging.of(Config(dict(train_cfg=dict(max_iters=1)))).text == '1 iteration'


def steady(times: list[float], **more: dict) -> History:
    """A training of 100 iterations with a record every five."""
    found = {5 * i + 5: time for i, time in enumerate(times)}
    return History(found, found, more.get('validations', {}), 100)


def test_disturbed_runs_are_found():
    # The fourth tenth has the records of iterations 35 and 40.
    slow = [0.2] * 6 + [0.25, 0.25] + [0.2] * 12
    assert disturbances({0: steady(slow)}) == {
        0: '25 % longer in tenth 4 of 10 than in the whole training'
    }
    single = [0.2] * 7 + [0.27] + [0.2] * 12  # the tenth's median is 0.235
    assert disturbances({0: steady(single), 1: steady([0.2] * 20)}) == {}
    fast = [0.2] * 18 + [0.15, 0.15]
    assert disturbances({0: steady(fast)}) == {
        0: '25 % shorter in tenth 10 of 10 than in the whole training'
    }
    seeds = {0: steady([0.2] * 20), 1: steady([0.21] * 20), 2: steady([0.28] * 20)}
    assert disturbances(seeds) == {2: '33 % longer than the median over the seeds'}


def test_a_beginning_is_no_disturbance(tmp_path):
    records = [trained(10, 5.0), *(trained(10 * i, 0.2) for i in range(2, 11))]
    write_scalars(tmp_path / 'a', '1', *records)
    again = [trained(60, 5.0), *(trained(10 * i, 0.2) for i in range(7, 11))]
    write_scalars(tmp_path / 'b', '1', *records[:5])
    write_scalars(tmp_path / 'b', '2', *again)
    # Nothing can be told where every record has a beginning.
    write_scalars(tmp_path / 'c', '1', trained(1, 5.0), trained(2, 2.0))
    histories = {i: read_history(tmp_path / name, ITERATIONS) for i, name in enumerate('abc')}
    assert disturbances(histories) == {}
    assert histories[2].steady == {} and histories[2].median() == 3.5


def test_the_report_marks_disturbed_runs(tmp_path):
    histories = {0: steady([0.2] * 20), 1: steady([0.2] * 18 + [0.3] * 2)}
    marked = disturbances(histories)
    one = variant('carafe', {0: 50.0, 1: 60.0}, histories=histories, disturbed=marked)
    report.write_report(tmp_path, 'Title', [], {'iterations': [one]}, False)
    text = (tmp_path / 'report.md').read_text()
    assert '| carafe † | 2 | 55.00' in text
    assert '| carafe | 50.00 | 60.00 † |' in text
    assert '- carafe, seed 1: 50 % longer in tenth 10 of 10 than in the whole training.' in text


def curved(name: str, time: float, *scores: dict[int, float], length: str = '') -> Variant:
    histories = {
        seed: steady([time] * 20, validations={s: dict(mIoU=v) for s, v in found.items()})
        for seed, found in enumerate(scores)
    }
    return variant(name, {seed: 50.0 for seed in histories}, histories=histories, length=length)


def test_curves_are_means_over_seeds_and_read_at_the_time_of_the_fastest(tmp_path):
    fast = curved('bilinear', 0.1, {50: 20.0, 100: 40.0}, {50: 30.0, 75: 1.0, 100: 44.0})
    slow = curved('sapa-b', 0.2, {25: 10.0, 100: 70.0})
    np.testing.assert_allclose(curves.curve(fast, 'mIoU'), [(5.0, 25.0), (10.0, 42.0)])
    np.testing.assert_allclose(curves.curve(slow, 'mIoU'), [(5.0, 10.0), (20.0, 70.0)])
    # The fastest takes 10 s: at 7.5 s it is half way, and the other a sixth of its way.
    lines = curves.curves_table([slow, fast, variant('a2u', {})], 'mIoU').splitlines()
    assert lines[0] == '| mIoU | 2.5 s | 5.0 s | 7.5 s | 10.0 s |'
    assert lines[2:] == [
        '| sapa-b | - | 10.00 | 20.00 | 30.00 |',
        '| bilinear | - | 25.00 | 33.50 | 42.00 |',
    ]
    assert curves.curves_table([variant('a2u', {0: 1.0})], 'mIoU') is None
    assert curves.training_seconds(slow) == pytest.approx(20.0)
    path = tmp_path / 'curves.png'
    assert not curves.plot_curves(path, {'Title': [variant('a2u', {0: 1.0})]}, 'mIoU')
    assert not path.exists()
    assert curves.plot_curves(path, {'A': [slow, fast], 'B': [fast]}, 'mIoU')
    with Image.open(path) as picture:
        assert min(picture.size) > 300


def test_a_report_of_both_budgets(tmp_path):
    whole = [curved('bilinear', 0.1, {50: 20.0, 100: 40.0}), curved('fade', 0.2, {50: 3.0})]
    timed = [
        curved('bilinear', 0.1, {50: 20.0, 100: 40.0}, length='100 iterations'),
        curved('fade', 0.2, {50: 3.0, 100: 5.0}, length='50 iterations'),
    ]
    files = report.write_report(
        tmp_path, 'Title', [], {'iterations': whole, 'time': timed}, True, 'fade'
    )
    assert sorted(file.name for file in files) == [
        'accuracy_over_cost.png',
        'accuracy_over_time.png',
        'report.html',
        'report.json',
        'report.md',
    ]
    text = (tmp_path / 'report.md').read_text()
    headings = [line for line in text.splitlines() if line.startswith('#')]
    assert headings == [
        '# Title',
        '## Equal iterations',
        '### Every seed',
        '## Equal training time',
        '### Every seed',
        '## Accuracy over training time',
        '## Predictions',
    ]
    first, second = text.split('## Equal training time')
    assert '| trained | training time |' not in first
    assert '| upsampler | seeds | mIoU | trained | training time | parameters |' in second
    assert '| bilinear | 1 | 50.00 | 100 iterations | 10 s | 1 |' in second
    assert '| fade | 1 | 50.00 | 50 iterations | 20 s | 1 |' in second
    assert first.count('mIoU, less fade') == second.count('mIoU, less fade') == 1
    assert text.count('accuracy_over_cost.png') == text.count('accuracy_over_time.png') == 1


def test_the_record_has_every_run(tmp_path):
    fast = curved('bilinear', 0.1, {50: 20.0, 100: 40.0}, {100: 44.0}, length='100 iterations')
    slow = variant('fade', {3: 60.0}, disturbed={3: 'by much'}, length='50 iterations')
    budgets = {'iterations': [fast, variant('a2u', {})], 'time': [fast, slow]}
    report.write_report(tmp_path, 'Title', ['A note.'], budgets, False)
    record = json.loads((tmp_path / 'report.json').read_text())
    assert record['notes'] == ['A note.'] and list(record['budgets']) == ['iterations', 'time']
    whole, timed = record['budgets'].values()
    assert list(whole) == ['bilinear', 'a2u'] and list(timed) == ['bilinear', 'fade']
    assert whole['a2u'] == dict(trained='', training_seconds=None, cost=COST, runs=[])
    assert whole['bilinear'] == timed['bilinear']
    assert whole['bilinear']['trained'] == '100 iterations'
    assert whole['bilinear']['training_seconds'] == pytest.approx(10)
    first, second = whole['bilinear']['runs']
    assert [run['seed'] for run in (first, second)] == [0, 1]
    assert first['metrics'] == {'mIoU': 50.0} and first['iteration_seconds'] == 0.5
    assert [(v['iteration'], v['metrics']['mIoU']) for v in first['validations']] == [
        (50, 20.0),
        (100, 40.0),
    ]
    assert [v['seconds'] for v in first['validations']] == pytest.approx([5, 10])
    assert first['disturbed'] is None
    assert timed['fade']['runs'] == [
        dict(seed=3, metrics={'mIoU': 60.0}, iteration_seconds=0.5, disturbed='by much')
    ]


def test_variants_look_different_however_many_there_are(tmp_path):
    looks = [tuple(style(i).values()) for i in range(100)]
    assert len({look[:2] for look in looks}) == 100  # by colour and marker alone
    assert len(set(looks[i][0] + looks[i][2] for i in range(40))) == 40  # so do lines
    many = [variant(f'v{i}', {0: 50.0 + i}) for i in range(13)]
    report.plot(tmp_path / 'plot.png', many, 'mIoU')
    with Image.open(tmp_path / 'plot.png') as picture:
        assert picture.width > 1000
