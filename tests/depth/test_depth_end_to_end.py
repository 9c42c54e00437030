"""Depth with real processes: data, both train scripts, resuming, testing, pictures, ONNX."""

import json
import shutil
import sys
from pathlib import Path

import mmseg
import numpy as np
import onnxruntime
import pytest
from mmengine.config import Config
from PIL import Image
from testing_configs import ROOT
from testing_lines import for_own_script
from testing_processes import run_command as run

from sapa_mm.tools import export
from sapa_mm.tools.swap import swap

TOOLS = ROOT / 'tools'
SAPA_B = ROOT / 'configs' / 'bts' / 'bts-tiny_r18_sapa-b_1xb8-500_toy-160x160.py'
NEAREST = ROOT / 'configs' / 'bts' / 'bts-tiny_r18_nearest_1xb8-500_toy-160x160.py'
HCDORN = ROOT / 'configs' / 'dorn' / 'hcdorn-tiny_r18_1xb8-500_toy-161x161.py'
SHORT = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2']
NUMBERS = ('d1', 'd2', 'd3', 'abs_rel', 'sq_rel', 'rmse', 'rmse_log', 'log10', 'silog')
EDGES = ('dbe_acc', 'dbe_comp')


def scalars(work_dir: Path) -> dict:
    """Return the last line that the last run logged, its validation."""
    log = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    return json.loads(log.read_text().splitlines()[-1])


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Make a folder with toy depth where the tiny configs look for it."""
    folder = tmp_path_factory.mktemp('project')
    make = [TOOLS / 'make_toy_dataset.py', '--out', 'data/toy', '--layouts', 'depth']
    run(folder, sys.executable, *make, '--num-train', 8, '--num-val', 2, '--size', 64)
    return folder


@pytest.fixture(scope='module')
def trained(folder) -> Path:
    """Train BTS with SAPA-B by this project's launcher."""
    work = folder / 'work' / 'sapa-b'
    run(folder, sys.executable, TOOLS / 'train.py', SAPA_B, '--work-dir', work,
        '--cfg-options', *SHORT)  # fmt: skip
    return work


def test_training_validates_by_all_numbers(trained):
    last = scalars(trained)
    assert last.keys() >= {*NUMBERS, *EDGES}
    assert 0 < last['abs_rel'] < 10 and last['d1'] <= last['d2'] <= last['d3'] <= 1
    assert 0 <= last['dbe_comp'] <= 10


def test_mmsegs_own_script_trains_the_same(folder, trained):
    script = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py'
    work = folder / 'work' / 'own'
    run(folder, sys.executable, script, for_own_script(SAPA_B, folder), '--work-dir', work,
        '--cfg-options', *SHORT)  # fmt: skip
    assert scalars(work)['abs_rel'] == scalars(trained)['abs_rel']


def test_testing_a_checkpoint_repeats_the_validation_and_draws(folder, trained):
    work = folder / 'work' / 'test'
    hook = 'default_hooks.visualization'
    run(folder, sys.executable, TOOLS / 'test.py', SAPA_B, trained / 'iter_2.pth', '--work-dir',
        work, '--cfg-options', f'{hook}.draw=True', f'{hook}.interval=1')  # fmt: skip
    (log,) = work.glob('*/*.json')
    got = json.loads(log.read_text())
    for name in (*NUMBERS, *EDGES):
        assert got[name] == pytest.approx(scalars(trained)[name], rel=1e-3), name
    assert len(list(work.rglob('vis_image/*.png'))) == 2


def test_resuming(folder, trained):
    # In a copy: it leaves the last checkpoint alone, and other tests want this one.
    work = folder / 'work' / 'resumed'
    shutil.copytree(trained, work)
    longer = [option.replace('=2', '=3') for option in SHORT]
    printed = run(
        folder, sys.executable, TOOLS / 'train.py', SAPA_B, '--work-dir', work, '--resume',
        '--cfg-options', *longer,
    )  # fmt: skip
    assert 'resumed epoch: 0, iter: 2' in printed
    assert (work / 'iter_3.pth').is_file()


@pytest.mark.parametrize('config', [SAPA_B, HCDORN], ids=lambda path: path.stem.split('_')[0])
def test_two_processes_wait_for_no_parameter(folder, config):
    work = folder / 'work' / f'two-{config.stem}'
    run(folder, 'bash', TOOLS / 'dist_train.sh', config, 2, '--work-dir', work, '--cfg-options',
        *SHORT, 'train_dataloader.batch_size=2', PYTHON=sys.executable)  # fmt: skip
    assert scalars(work).keys() >= {*NUMBERS, *EDGES}
    assert (work / 'iter_2.pth').is_file()


def test_visualize_draws_every_step(folder, trained):
    image = folder / 'data/toy/depth/images/test/scene_00001.jpg'
    run(folder, sys.executable, TOOLS / 'visualize.py', SAPA_B, trained / 'iter_2.pth', image)
    drawn = {path.stem for path in (folder / 'visualizations').iterdir()}
    assert drawn == {f'scene_00001_{step}' for step in ('up5', 'up4', 'up3', 'up2', 'steps')}


@pytest.mark.slow
def test_compare_reports_errors_and_pictures(folder):
    work = folder / 'work' / 'compare'
    run(folder, sys.executable, TOOLS / 'compare.py', NEAREST, '--upsamplers', 'sapa-b',
        '--seeds', 0, '--images', 2, '--image-size', 64, 64, '--work-dir', work,
        '--cfg-options', *SHORT)  # fmt: skip
    text = (work / 'report.md').read_text()
    assert '| abs rel ↓ | edge completeness (px) ↓ | edge accuracy (px) ↓ | RMSE (m) ↓ | δ1' in text
    assert 'By mean abs rel: ' in text
    # Image, truth and prediction; depth, error and edges of two images.
    picture = Image.open(work / 'pictures.png').convert('RGB')
    assert len(picture.getcolors(maxcolors=2**24)) > 1000


def test_swap_finds_the_head():
    overrides, changes = swap(Config.fromfile(NEAREST), dict(type='CARAFE'))
    assert [(change.path, change.after) for change in changes] == [
        ('model.decode_head', 'GuidedBTSHead')
    ]
    assert overrides['model']['decode_head']['upsample_cfg']['type'] == 'CARAFE'


@pytest.mark.slow
def test_one_onnx_file_serves_all_sizes(tmp_path):
    config, out = tmp_path / 'small.py', tmp_path / 'model.onnx'
    # One step with SAPA, as its windows take long to trace.
    config.write_text(
        f'_base_ = {str(NEAREST)!r}\n'
        "model = dict(decode_head=dict(step_cfgs=dict(up2=dict(type='SAPA', "
        "similarity='bilinear', kernel_size=3))))\n"
    )
    export.main([str(config), '--out', str(out), '--size', '64', '96'])
    session = onnxruntime.InferenceSession(str(out), providers=['CPUExecutionProvider'])
    assert [node.name for node in session.get_outputs()] == ['depth']
    for size in ((64, 64), (67, 93)):
        (depth,) = session.run(None, {'image': np.zeros((1, 3, *size), np.float32)})
        assert depth.shape == (1, 1, *size)
        assert 0 < depth.min() and depth.max() < 10
