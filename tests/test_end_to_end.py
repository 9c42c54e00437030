"""Do the main job with real processes: data, training by either script, testing, the picture."""

import json
import shutil
import sys
from pathlib import Path

import mmdet
import mmseg
import pytest
from PIL import Image
from testing_lines import for_own_script
from testing_processes import run_command

ROOT = Path(__file__).parents[1]
SAPA = ROOT / 'configs' / 'sapa'
SEGMENTOR = SAPA / 'segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py'
BASELINE = SAPA / 'segformer_mit-t_bilinear_1xb8-600_toy-160x160.py'
DETECTOR = SAPA / 'faster-rcnn_r18_fpn_sapa-b_1xb2-100_toy-160x160.py'
SHORT = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2']


def python(folder: Path, script: Path, *arguments: object) -> str:
    """Run a script in a folder; return its output."""
    return run_command(folder, sys.executable, script, *arguments)


def scalars(work_dir: Path) -> dict:
    """Return the last line that a run logged, its validation."""
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return json.loads(log.read_text().splitlines()[-1])


def metrics_of(work_dir: Path) -> dict:
    """Return the metrics that a test run wrote."""
    (log,) = work_dir.glob('*/*.json')
    return json.loads(log.read_text())


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Make a folder with toy data where the tiny configs look for it."""
    folder = tmp_path_factory.mktemp('project')
    make = ROOT / 'tools' / 'make_toy_dataset.py'
    python(folder, make, '--out', 'data/toy', '--num-train', 8, '--num-val', 3, '--size', 64)
    return folder


@pytest.fixture(scope='module')
def segmentors(folder) -> dict[str, Path]:
    """Train SAPA-G by this project's launcher, bilinear by mmseg's own script."""
    own = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py'
    work_dirs = {'sapa-g': folder / 'work' / 'sapa-g', 'bilinear': folder / 'work' / 'bilinear'}
    for script, config, name in (
        (ROOT / 'tools' / 'train.py', SEGMENTOR, 'sapa-g'),
        (own, for_own_script(BASELINE, folder), 'bilinear'),
    ):
        python(folder, script, config, '--work-dir', work_dirs[name], '--cfg-options', *SHORT)
    return work_dirs


def test_segmentors_train_evaluate_and_save(segmentors):
    for work_dir in segmentors.values():
        assert (work_dir / 'iter_2.pth').is_file()
        last = scalars(work_dir)
        assert 0 <= last['mIoU'] <= 100
        assert 0 <= last['mBIoU'] <= 100


def test_the_same_config_through_mmsegs_own_script(folder, segmentors):
    script = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py'
    work_dir = folder / 'work' / 'own'
    config = for_own_script(SEGMENTOR, folder)
    python(folder, script, config, '--work-dir', work_dir, '--cfg-options', *SHORT)
    # The seed is the same, so the model is.
    assert scalars(work_dir)['mIoU'] == scalars(segmentors['sapa-g'])['mIoU']


def test_testing_a_checkpoint_repeats_the_validation(folder, segmentors):
    work_dir = folder / 'work' / 'test'
    checkpoint = segmentors['sapa-g'] / 'iter_2.pth'
    python(folder, ROOT / 'tools' / 'test.py', SEGMENTOR, checkpoint, '--work-dir', work_dir)
    got, expected = metrics_of(work_dir), scalars(segmentors['sapa-g'])
    for metric in ('aAcc', 'mIoU', 'mBIoU'):
        assert got[metric] == pytest.approx(expected[metric], abs=0.011)


def test_report(folder, segmentors):
    out = folder / 'pictures' / 'comparison.png'
    runs = [f'{name}={work_dir}' for name, work_dir in segmentors.items()]
    report = ROOT / 'tools' / 'quickstart_report.py'
    printed = python(folder, report, *runs, '--out', out, '--images', 2)
    for work_dir in segmentors.values():
        assert f'{scalars(work_dir)["mBIoU"]:.2f}' in printed
    picture = Image.open(out)
    assert picture.width > 1.5 * picture.height  # image, truth and two predictions; two rows
    assert len(picture.convert('RGB').getcolors(maxcolors=2**24)) > 100


def test_report_without_the_data(folder, segmentors):
    (config,) = segmentors['sapa-g'].glob('*.py')
    moved = folder / 'moved'
    shutil.copytree(segmentors['sapa-g'], moved)
    assert 'data/toy' in config.read_text()
    (moved / config.name).write_text(config.read_text().replace('data/toy', 'data/gone'))
    report, out = ROOT / 'tools' / 'quickstart_report.py', folder / 'gone.png'
    with pytest.raises(
        AssertionError, match=r'quickstart_report.py: error: the data are gone: .*gone'
    ):
        python(folder, report, f'sapa-g={moved}', '--out', out)
    assert not out.exists()


def test_a_detector_trains_tests_and_resumes(folder):
    # After two steps no score passes the usual threshold, and no box would be no AP.
    short = [*SHORT, 'model.test_cfg.rcnn.score_thr=0.0']
    work_dir = folder / 'work' / 'detector'
    own = Path(mmdet.__file__).parent / '.mim' / 'tools'
    python(folder, own / 'train.py', DETECTOR, '--work-dir', work_dir, '--cfg-options', *short)
    assert 'coco/bbox_mAP' in scalars(work_dir)
    test_dir = folder / 'work' / 'detector-test'
    checkpoint = work_dir / 'iter_2.pth'
    python(
        folder,
        own / 'test.py',
        DETECTOR,
        checkpoint,
        '--work-dir',
        test_dir,
        '--cfg-options',
        *short,
    )
    assert metrics_of(test_dir)['coco/bbox_mAP'] == scalars(work_dir)['coco/bbox_mAP']
    longer = [option.replace('=2', '=3') for option in short]
    train = ROOT / 'tools' / 'train.py'
    options = ['--work-dir', work_dir, '--resume', '--cfg-options', *longer]
    assert 'resumed epoch: 0, iter: 2' in python(folder, train, DETECTOR, *options)
    assert (work_dir / 'iter_3.pth').is_file()


def test_a_stock_config_and_options_alone(folder):
    work_dir = folder / 'work' / 'stock'
    stock = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
    python(
        folder,
        ROOT / 'tools' / 'train.py',
        stock,
        '--work-dir',
        work_dir,
        '--cfg-options',
        *SHORT[:1],
        'model.decode_head.type=GuidedSegformerHead',
        'model.decode_head.upsample_cfg.type=SAPA',
        'model.decode_head.upsample_cfg.similarity=inner',
        'model.backbone.init_cfg=None',
        'model.data_preprocessor.size=(64,64)',
        'train_dataloader.dataset.data_root=data/toy/ade',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'train_dataloader.dataset.pipeline.2.scale=(64,64)',
        'default_hooks.checkpoint.interval=2',
        'train_cfg.val_interval=5',
        'val_dataloader.dataset.data_root=data/toy/ade',
    )
    assert (work_dir / 'iter_2.pth').is_file()
    written = (work_dir / Path(stock).name).read_text()
    assert "type='GuidedSegformerHead'" in written
