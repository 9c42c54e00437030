"""tools/compare.py trains, tests and reports, and goes on where it was stopped."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from PIL import Image
from testing_configs import ROOT

from sapa_mm.tools.compare import command as compare
from sapa_mm.tools.compare import pace, pool, report, runs
from sapa_mm.tools.compare.processes import Processes

TOOLS = ROOT / 'tools'

TOY = ROOT / 'configs/_base_/segformer_mit-t_1xb8-600_toy-160x160.py'
SIZE = ['--image-size', '32', '32']
# Seconds that several short trainings may take on a loaded machine.
PATIENCE = 900


@pytest.fixture(scope='module')
def base(tmp_path_factory) -> Path:
    """A config that trains in seconds, and its data."""
    folder = tmp_path_factory.mktemp('compare')
    subprocess.run(
        [sys.executable, TOOLS / 'make_toy_dataset.py', '--out', folder / 'toy']
        + '--num-train 4 --num-val 3 --size 64'.split(),
        check=True,
        capture_output=True,
    )
    # The images have several sizes, as those of ADE20K do.
    for kind, suffix in (('images', 'jpg'), ('annotations', 'png')):
        file = folder / 'toy' / 'ade' / kind / 'validation' / f'ADE_val_00000001.{suffix}'
        with Image.open(file) as image:
            cropped = image.crop((0, 0, 64, 48))
        cropped.save(file)
    path = folder / 'base.py'
    cfg = Config.fromfile(TOY)
    published = folder / 'published.pth'
    register_all_modules()
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta={}), published)
    path.write_text(
        f'_base_ = {str(TOY)!r}\nload_from = {str(published)!r}\n'
        f'data_root = {str(folder / "toy" / "ade")!r}\n'
        'train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root))\n'
        'val_dataloader = dict(dataset=dict(data_root=data_root))\n'
        'test_dataloader = val_dataloader\n'
        'train_cfg = dict(max_iters=4, val_interval=100)\n'
        'default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))\n'
    )
    return path


def arguments(base: Path, work: Path, *more: str) -> list[str]:
    return [str(base), '--work-dir', str(work), *SIZE, '--images', '2', *more]


def test_it_goes_on_where_it_was_killed(base, tmp_path, capsys):
    work = tmp_path / 'work'
    options = arguments(base, work, '--upsamplers', 'bilinear,sapa-b', '--seeds', '3')
    killed = subprocess.Popen(
        [sys.executable, '-W', 'ignore', str(TOOLS / 'compare.py'), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that what it started can be killed with it
    )
    first, second = work / 'bilinear' / 'seed3', work / 'sapa-b' / 'seed3'

    def finished(folder: Path) -> bool:
        return 'metrics' in json.loads((folder / 'run.json').read_text())

    deadline = time.monotonic() + PATIENCE
    while not (second / 'last_checkpoint').is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert finished(first) and not finished(second)
    before = (first / 'run.json').read_bytes(), (first / 'log.txt').read_bytes()
    # What was begun with other options is not gone on with, either.
    first.rename(work / 'aside')
    with pytest.raises(SystemExit) as stopped:
        compare.main([*options, '--cfg-options', 'train_cfg.max_iters=9'])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert f'{second} holds a run of another config or other options' in error
    (work / 'aside').rename(first)
    assert (second / 'last_checkpoint').is_file()

    assert compare.main(options) == 0
    printed = capsys.readouterr().out
    assert '2 runs, 1 of them finished before.' in printed
    after = (first / 'run.json').read_bytes(), (first / 'log.txt').read_bytes()
    assert after == before
    # It begins with what load_from names, and goes on with what was trained.
    log = (second / 'log.txt').read_text()
    begun, resumed = log.split('train.py')[1:3]
    published = base.parent / 'published.pth'
    assert f'Load checkpoint from {published}' in begun and 'resumed' not in begun.lower()
    assert 'resumed' in resumed.lower() and f'from {published}' not in resumed

    results = {
        name: json.loads((folder / 'run.json').read_text())
        for name, folder in (('bilinear', first), ('sapa-b', second))
    }
    text = (work / 'report.md').read_text()
    for name, result in results.items():
        assert result['metrics'].keys() >= {'mIoU', 'mBIoU', 'aAcc'}
        assert result['checkpoint'] == 'iter_4.pth'
        assert result['seconds'] > 0 and result['memory'] > 100 * 2**20
        row = re.search(rf'^\| {name} \| 1 \| (.*) \|$', text, re.M)[1].split(' | ')
        metrics = result['metrics']
        assert row[:3] == [f'{metrics[key]:.2f}' for key in ('mIoU', 'mBIoU', 'aAcc')]
    # A step adds Table 2's parameters, and a head of width 64 has six steps.
    added = 6 * (2 * (64 * 32 + 32) + 2 * 2 * 64)
    counted = [int(n.replace(',', '')) for n in re.findall(r'\| ([\d,]{6,}) \|', text)]
    assert counted[1] - counted[0] == added
    assert '<table>' in (work / 'report.html').read_text()
    for name in ('pictures.png', 'accuracy_over_cost.png'):
        with Image.open(work / name) as picture:
            assert min(picture.size) > 300

    seeds = {
        n: Config.fromfile(f / f'{n}.py').randomness.seed
        for n, f in (('bilinear', first), ('sapa-b', second))
    }
    assert seeds == {'bilinear': 3, 'sapa-b': 3}

    # Other options are another comparison, which must not pass for this one.
    with pytest.raises(SystemExit) as stopped:
        compare.main([*options, '--cfg-options', 'train_cfg.max_iters=2'])
    assert stopped.value.code == 2
    assert 'another config or other options' in capsys.readouterr().err


@pytest.mark.slow  # it trains two variants with both budgets, in several attempts
def test_equal_time_goes_on_where_it_was_killed(base, tmp_path, capsys):
    work = tmp_path / 'work'
    options = arguments(base, work, '--upsamplers', 'bilinear,sapa-b', '--seeds', '3')
    options += ['--cfg-options', 'train_cfg.max_iters=40', 'train_cfg.val_interval=10']
    both = [*options, '--budget', 'iterations', 'time']
    timed = work / 'equal-time' / 'sapa-b' / 'seed3'

    def killed_when(path: Path) -> None:
        comparison = subprocess.Popen(
            [sys.executable, '-W', 'ignore', str(TOOLS / 'compare.py'), *both],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + PATIENCE
        while not path.is_file():
            assert time.monotonic() < deadline and comparison.poll() is None
            time.sleep(0.05)
        os.killpg(comparison.pid, signal.SIGKILL)
        comparison.wait()

    # Nothing can be reported of equal time before pace was measured.
    with pytest.raises(SystemExit):
        compare.main([*options, '--budget', 'time', '--report-only'])
    assert 'was not measured yet' in capsys.readouterr().err
    assert not (work / 'pace').exists()

    killed_when(work / 'pace.json')
    measured = json.loads((work / 'pace.json').read_text())['rounds']
    first, second = measured.values()
    assert [len(times) for times in first] == [6] and second == []
    assert not (work / 'bilinear').exists()

    # So fast that the other is slower however loaded the machine is, and as often as is enough.
    fast = [[seconds / 2 for seconds in first[0]]] * pace.ROUNDS
    known = json.loads((work / 'pace.json').read_text())
    known['rounds'][next(iter(known['rounds']))] = fast
    (work / 'pace.json').write_text(json.dumps(known))
    killed_when(timed / 'last_checkpoint')
    paces = json.loads((work / 'pace.json').read_text())
    kept, added = paces['rounds'].values()
    assert kept == fast and pace.enough(added)
    whole = [work / name / 'seed3' / 'run.json' for name in ('bilinear', 'sapa-b')]
    before = [path.read_bytes() for path in whole]
    assert all('metrics' in json.loads(text) for text in before)
    assert 'metrics' not in json.loads((timed / 'run.json').read_text())

    capsys.readouterr()
    assert compare.main(both) == 0
    assert '3 runs, 2 of them finished before.' in capsys.readouterr().out
    assert [path.read_bytes() for path in whole] == before
    assert json.loads((work / 'pace.json').read_text()) == paces
    assert 'resumed' in (timed / 'log.txt').read_text().lower()
    # The fastest is not trained again, and its config is the same.
    assert not (work / 'equal-time' / 'bilinear').exists()
    configs = [folder / 'configs' / 'bilinear.py' for folder in (work, work / 'equal-time')]
    assert configs[0].read_bytes() == configs[1].read_bytes()

    # The length is that of the measured ratio, and the last iteration is what was tested.
    medians = [
        statistics.median(s for times in found for s in times) for found in paces['rounds'].values()
    ]
    length = int(40 * (medians[0] / medians[1]))
    assert 1 <= length < 40
    cfg = Config.fromfile(work / 'equal-time' / 'configs' / 'sapa-b.py')
    assert cfg.train_cfg.max_iters == length
    assert cfg.train_cfg.val_interval == 10 * length // 40
    assert cfg.param_scheduler[1].end == 600 * length // 40
    result = json.loads((timed / 'run.json').read_text())
    assert result['checkpoint'] == f'iter_{length}.pth'

    text = (work / 'report.md').read_text()
    first, second = text.split('## Equal training time')
    assert '## Equal iterations' in first
    row = re.search(r'^\| sapa-b( †)? \| 1 \| (.*) \|$', second, re.M)[2].split(' | ')
    assert row[0] == f'{result["metrics"]["mIoU"]:.2f}'
    assert row[3] == f'{length} iterations' and re.fullmatch(r'\d+ s', row[4])
    assert re.search(r'\| sapa-b \| [-+]\d+\.\d\d \| [-+]\d+\.\d\d \| - \| one seed \|', second)
    assert '![mIoU of validation over seconds of training](accuracy_over_time.png)' in text
    assert (work / 'accuracy_over_time.png').is_file()

    # What is finished is reported without a training, of each budget alone as well.
    logs = {path: path.read_bytes() for path in work.glob('**/log.txt')}
    for budgets in (['iterations'], ['time']):
        assert compare.main([*options, '--report-only', '--budget', *budgets]) == 0
        assert (work / 'pictures.png').stat().st_size > 1000
        text = (work / 'report.md').read_text()
        assert '2 of 2 runs are finished; 20' in text  # and when and where
        assert ('## Equal training time' in text) == ('time' in budgets)
    assert {path: path.read_bytes() for path in work.glob('**/log.txt')} == logs


def test_sigterm_stops_what_runs(base, tmp_path):
    work = tmp_path / 'work'
    options = ['--upsamplers', 'bilinear', '--seeds', '0', '1', '--jobs', '1']
    options += ['--cfg-options', 'train_cfg.max_iters=100000']
    comparison = subprocess.Popen(
        [sys.executable, '-W', 'ignore', TOOLS / 'compare.py', *arguments(base, work, *options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        log = work / 'bilinear' / 'seed0' / 'log.txt'
        deadline = time.monotonic() + PATIENCE
        while not (log.is_file() and 'Iter(train)' in log.read_text()):
            assert time.monotonic() < deadline and comparison.poll() is None
            time.sleep(0.05)
        comparison.terminate()
        printed, _ = comparison.communicate(timeout=60)
        assert comparison.returncode == 128 + signal.SIGTERM
        assert 'Traceback' not in printed and 'failed' not in printed
        # Every process that works in a folder holds its lock.
        with runs.locked(work), runs.locked(log.parent):
            pass
        assert 'metrics' not in json.loads((log.parent / 'run.json').read_text())
        assert not (work / 'bilinear' / 'seed1').exists()
    finally:
        if comparison.poll() is None:
            os.killpg(comparison.pid, signal.SIGKILL)
            comparison.communicate()


def test_stopped_processes_end_and_no_other_starts(tmp_path):
    processes, begun, log = Processes(), threading.Event(), tmp_path / 'log.txt'
    command = [sys.executable, '-c', 'print("begun", flush=True); import time; time.sleep(600)']

    def run(lock: int) -> int:
        return processes.run(command, log, os.environ, lock, lambda line: begun.set())

    with runs.locked(tmp_path) as lock, ThreadPoolExecutor(1) as threads:
        future = threads.submit(run, lock)
        assert begun.wait(60)
        assert not processes.stopped
        processes.stop()
        with pytest.raises(runs.ToolError, match=f'failed with status {-signal.SIGTERM}'):
            future.result(60)
        begun.clear()
        with pytest.raises(runs.ToolError, match='stopped'):
            run(lock)
    assert processes.stopped and not begun.is_set()
    assert log.read_text().count('begun\n') == 1


def test_the_line_of_a_run_has_what_reports_show():
    metrics = {'BIoU.car': 40.0, 'mIoU': 51.234, 'mBIoU-2px': 20.0}
    assert pool.describe_metrics(metrics) == 'mIoU 51.23, mBIoU-2px 20.00'
    assert pool.describe_metrics({'BIoU.car': 40.0}) == 'BIoU.car 40.00'


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='a process has all cores here')
def test_cores_that_this_process_may_not_use_do_not_count():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert pool.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_every_slot_has_a_gpu_or_a_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(pool, 'usable_cores', lambda: 8)
    monkeypatch.setenv('OMP_NUM_THREADS', '5')
    slots = pool.environments(3, 0)
    assert [slot['OMP_NUM_THREADS'] for slot in slots] == ['2', '2', '2']
    assert pool.environments(1, 0)[0]['OMP_NUM_THREADS'] == '5'
    assert all(slot['PATH'] == os.environ['PATH'] for slot in slots)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert [slot['CUDA_VISIBLE_DEVICES'] for slot in pool.environments(3, 2)] == ['0', '1', '0']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,3')
    slots = pool.environments(3, 2)
    assert [slot['CUDA_VISIBLE_DEVICES'] for slot in slots] == ['5', '3', '5']
    assert slots[0]['OMP_NUM_THREADS'] == '5'


def test_a_failing_run_is_reported_and_the_others_are_made(base, tmp_path, capsys):
    options = ['--upsamplers', 'bilinear', '--seeds', '0', '--cfg-options']
    wrong = 'train_dataloader.dataset.type=Nonesuch'
    assert compare.main(arguments(base, tmp_path / 'work', *options, wrong)) == 1
    error = capsys.readouterr().err
    assert 'bilinear, seed 0: failed with status' in error and 'Nonesuch' in error
    assert '| bilinear | 0 |' in (tmp_path / 'work' / 'report.md').read_text()


def test_a_folder_in_use_is_refused(tmp_path):
    with runs.locked(tmp_path), pytest.raises(runs.ToolError, match='still works there'):
        with runs.locked(tmp_path):
            pass
    with runs.locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ('line', 'epochs', 'share'),
    [
        ('... - INFO - Iter(train) [ 20/600]  base_lr: 1', None, 20 / 600),
        ('... Epoch(train)  [3][ 50/200]  lr: 1', 12, 2.25 / 12),
        ('... Epoch(train)  [3][ 50/200]  lr: 1', None, None),
        ('Iter(val) [60/60]', 12, None),
    ],
)
def test_progress(line, epochs, share):
    assert runs.progress_of(line, epochs) == (share and pytest.approx(share))


def variant(name: str, scores: dict[int, float], flops: float = 1e9) -> report.Variant:
    results = {
        seed: dict(metrics=dict(mIoU=score, mBIoU=score - 10), seconds=0.5, memory=2**20 * seed)
        for seed, score in scores.items()
    }
    cost = dict(parameters=1_234_567, flops=flops, ms=20.0, time_over_first=1.5)
    return report.Variant(name, results, cost)


def test_the_report_has_means_spreads_and_differences(tmp_path):
    variants = [
        variant('carafe', {1: 50.0, 2: 54.0}, 2e9),
        variant('sapa-b', {1: 51.0, 2: 49.0}),
        variant('nearest', {}),
    ]
    files = report.write_report(tmp_path, 'Title', ['A note.'], {'iterations': variants}, False)
    assert sorted(file.name for file in files) == sorted(path.name for path in tmp_path.iterdir())
    text = (tmp_path / 'report.md').read_text()
    spread = statistics.stdev([50, 54])
    assert (
        f'| carafe | 2 | 52.00 ± {spread:.2f} | 42.00 ± {spread:.2f} | 1,234,567 | 2.00 '
        '| 20.0 ms (1.50x) | 2 MiB | 0.50 s |'
    ) in text
    assert '| nearest | 0 | - | - | 1,234,567 | 1.00 | 20.0 ms (1.50x) | - | - |' in text
    assert 'By mean mIoU: carafe > sapa-b.' in text
    # Without bilinear the first is the baseline. -2 ± t(0.975, 1) · 4.243 / √2 is -2 ± 38.12.
    assert '| sapa-b | +1.00 | -5.00 | -2.00 ± 4.24 | -40.12 to +36.12 | undecided |' in text
    assert '| sapa-b | 51.00 | 49.00 |' in text
    page = (tmp_path / 'report.html').read_text()
    assert '<td style="text-align:right">51.00</td>' in page and '<h1>Title</h1>' in page


def test_errors_are_the_better_the_smaller(tmp_path):
    def depth(name: str, errors: dict[int, float]) -> report.Variant:
        results = {
            seed: dict(
                metrics=dict(abs_rel=error, d1=1 - error, dbe_acc=10 * error),
                memory=2**20,
                seconds=0.5,
            )
            for seed, error in errors.items()
        }
        return report.Variant(
            name, results, dict(parameters=1, flops=1e9, ms=2.0, time_over_first=1.0)
        )

    variants = [depth('nearest', {0: 0.1, 1: 0.2}), depth('sapa-b', {0: 0.12, 1: 0.16})]
    report.write_report(tmp_path, 'Title', [], {'iterations': variants}, False)
    text = (tmp_path / 'report.md').read_text()
    assert '| upsampler | seeds | abs rel ↓ | edge accuracy (px) ↓ | δ1 | parameters' in text
    spread = statistics.stdev([0.12, 0.16])
    assert f'| sapa-b | 2 | 0.1400 ± {spread:.4f} | 1.400 ± {10 * spread:.3f} | 0.8600 ±' in text
    assert 'By mean abs rel: sapa-b < nearest.' in text
    assert 'By mean edge accuracy: sapa-b < nearest.' in text
    assert 'By mean δ1: sapa-b > nearest.' in text
    # An error's differences of -0.1000 and -0.1004 are a gain, and of δ1 both are one.
    variants = [depth('nearest', {0: 0.2, 1: 0.3}), depth('sapa-b', {0: 0.1, 1: 0.1996})]
    report.write_report(tmp_path, 'Title', [], {'iterations': variants}, False)
    text = (tmp_path / 'report.md').read_text()
    row = '| sapa-b | -0.1000 | -0.1004 | -0.1002 ± 0.0003 | -0.1027 to -0.0977 | gain |'
    assert '| abs rel ↓, less nearest | seed 0 | seed 1 |' in text and row in text
    assert '| sapa-b | +0.1000 | +0.1004 | +0.1002 ± 0.0003 | +0.0977 to +0.1027 | gain |' in text
    assert '| sapa-b | 0.1000 | 0.1996 |' in text


def test_a_report_of_nothing(tmp_path):
    report.write_report(tmp_path, 'Title', [], {'iterations': [variant('sapa-b', {})]}, False)
    assert '| sapa-b | 0 | 1,234,567 |' in (tmp_path / 'report.md').read_text()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['none.py'], 'no file'),
        (['--upsamplers', 'sapa-b,sappa'], "argument --upsamplers: .*got 'sappa'"),
        (['--upsamplers', 'sapa-b,sapa_b'], 'argument --upsamplers: expected every upsampler once'),
        (
            ['--upsamplers', 'fade', '--baseline', 'sapa-b'],
            'argument --baseline: expected one',
        ),
        (['--budget', 'money'], 'argument --budget: invalid choice'),
        (['--seeds', '1', '1'], 'argument --seeds: expected every seed once'),
        (['mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'], 'PSPHead'),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    options = options if not options[0].startswith('--') else [str(TOY), *options]
    with pytest.raises(SystemExit) as stopped:
        compare.main(options)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_detector(base, tmp_path, capsys):
    config, work = tmp_path / 'detector.py', tmp_path / 'work'
    detector = ROOT / 'configs/sapa/faster-rcnn_r18_fpn_sapa-b_1xb2-100_toy-160x160.py'
    root = str(base.parent / 'toy' / 'coco') + '/'
    loader = f'dataset=dict(data_root={root!r})'
    evaluator = f'dict(ann_file={root + "annotations/instances_val2017.json"!r})'
    config.write_text(
        f'_base_ = {str(detector)!r}\ntrain_dataloader = dict({loader})\n'
        f'val_dataloader = dict({loader})\ntest_dataloader = dict({loader})\n'
        f'val_evaluator = {evaluator}\ntest_evaluator = {evaluator}\n'
        'model = dict(test_cfg=dict(rcnn=dict(score_thr=0.0)))\n'
    )
    options = ['--upsamplers', 'nearest', '--seeds', '0', '--cfg-options', 'train_cfg.max_iters=2']
    assert compare.main(arguments(config, work, *options)) == 0
    assert re.search(r'^\| nearest \| 1 \| \d+\.\d\d \|', (work / 'report.md').read_text(), re.M)
    assert '| upsampler | seeds | box AP |' in (work / 'report.md').read_text()
    with Image.open(work / 'pictures.png') as picture:  # image, truth and prediction; two rows
        assert picture.width / picture.height == pytest.approx(3 / 2, rel=0.1)
        assert len(picture.convert('RGB').getcolors(maxcolors=2**24)) > 100
