"""Every tool reads a new-style config, whose types are classes, as it reads its text twin."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadAnnotations
from mmdet.models import FPN
from mmengine.config import Config
from mmengine.runner import save_checkpoint
from mmseg.models import EncoderDecoder
from PIL import Image
from testing_configs import ROOT, build, offline, step_and_predict
from testing_new_style import without_marks, write_new_style

from sapa_mm.tools import launch, quickstart_report, superpixels, swap, visualize
from sapa_mm.tools.benchmark import models as benchmark
from sapa_mm.tools.compare.comparison import write_variants
from sapa_mm.tools.complexity import command as complexity
from sapa_mm.tools.complexity.count import count
from sapa_mm.tools.configs import read_config
from sapa_mm.tools.errors import ToolError
from sapa_mm.tools.export.subjects import read_model
from sapa_mm.tools.new_style import base_module, framework_of, registered_name
from sapa_mm.tools.predictions import draw_predictions

CONFIGS = ROOT / 'configs'
TEXTS = {
    'segmentor': CONFIGS / '_base_/segformer_mit-t_1xb8-600_toy-160x160.py',
    'detector': CONFIGS / 'sapa/faster-rcnn_r18_fpn_sapa-b_1xb2-100_toy-160x160.py',
    'guided_segmentor': CONFIGS / 'sapa/segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py',
    'clustering': CONFIGS / 'hc/hcfcn-32-tiny_r18-l3_1xb8-600_toy-160x160.py',
    'mask2former': Path('mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'),
}
SAPA_B = dict(type='SAPA', similarity='bilinear')
BASED = 'from mmengine.config import read_base\n\nwith read_base():\n    from .{} import *\n\n'
HOSTS = {
    'segmentor': ('decode_head', 'SegformerHead', 'GuidedSegformerHead', 'sapa_mm.segmentation'),
    'detector': ('neck', 'FPN', 'GuidedFPN', 'sapa_mm.detection'),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A folder with the twins; the detector has the stock FPN."""
    folder = tmp_path_factory.mktemp('new_style')
    for name, path in TEXTS.items():
        cfg = read_config(str(path))
        if name == 'detector':
            cfg.model.neck.pop('upsample_cfg')
            cfg.model.neck.type = 'FPN'
        write_new_style(cfg, folder / f'{name}.py')
    return folder


@pytest.fixture
def image(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / 'image.png')
    return tmp_path / 'image.png'


def checkpoint(config: Path, path: Path) -> Path:
    """Random weights of a config's model."""
    torch.manual_seed(0)
    cfg = read_config(str(config))
    classes = cfg.get('classes', ('thing',))
    meta = dict(dataset_meta=dict(classes=classes, palette=[[9, 9, 9]] * len(classes)))
    save_checkpoint(dict(meta=meta, state_dict=build(offline(cfg)).state_dict()), str(path))
    return path


def run_swap(config: Path, out: Path, *options: object) -> None:
    arguments = [config, '--upsampler', 'sapa-b', '--out', out, *options]
    swap.main([str(argument) for argument in arguments])


# Reading


@pytest.mark.parametrize('name', ['segmentor', 'guided_segmentor', 'clustering', 'mask2former'])
def test_it_is_read_as_its_twin(folder, name):
    path = folder / f'{name}.py'
    raw = Config.fromfile(path)
    assert raw.default_scope is None
    assert raw.model.type is EncoderDecoder or name == 'clustering'
    cfg = read_config(str(path))
    expected = read_config(str(TEXTS[name]))
    assert without_marks(cfg.to_dict()) == without_marks(expected.to_dict())
    # It can be copied, dumped and read anew.
    dumped = folder / f'dumped_{name}.py'
    copy.deepcopy(cfg).dump(dumped)
    assert read_config(str(dumped)).to_dict() == cfg.to_dict()
    raw.dump(dumped)
    assert 'mmseg.models' in dumped.read_text()
    assert without_marks(read_config(str(dumped)).to_dict()) == without_marks(expected.to_dict())


def test_a_class_whose_name_means_another_one_stays():
    assert registered_name(LoadAnnotations, 'mmseg') is None
    assert registered_name(torch.nn.SyncBatchNorm, 'mmseg') is None
    assert registered_name(torch.optim.AdamW, 'mmseg') == 'AdamW'
    assert registered_name(FPN, 'mmdet') == registered_name('mmdet.models.FPN', 'mmdet') == 'FPN'
    assert registered_name(FPN, 'mmseg') == 'mmdet.FPN'
    for name in ('FPN', 'mmdet.FPN', 'no.such.module', 'torch.nothing', '', None, 3):
        assert registered_name(name, 'mmdet') is None


def test_the_framework_is_that_of_the_classes(tmp_path):
    class Own(EncoderDecoder):
        pass

    class Foreign(torch.nn.Module):
        pass

    def found(**cfg: object) -> str | None:
        return framework_of(Config(cfg))

    assert found(model=dict(type=Own, decode_head=dict(type=FPN))) == 'mmseg'
    assert found(model=dict(type=Foreign, necks=[dict(type='A'), dict(type=FPN)])) == 'mmdet'
    assert found(model=dict(type='mmdet.models.FPN'), default_scope=None) == 'mmdet'
    assert found(model=dict(type=FPN), default_scope='mmseg') == 'mmseg'
    assert found(model=dict(type='FPN')) is None
    assert found() is None
    path = tmp_path / 'own.py'
    path.write_text('from torch.nn import ReLU\nmodel = dict(type=ReLU)\n')
    message = "'mmseg' or 'mmdet' in .*, or a model of their classes, got None"
    with pytest.raises(ToolError, match=message):
        read_config(str(path))
    with pytest.raises(ToolError, match=message):
        launch.prepare('train', [str(path)])


def test_what_cannot_be_imported_stays_until_it_is_used(folder, tmp_path):
    path = tmp_path / 'broken.py'
    text = (folder / 'segmentor.py').read_text()
    path.write_text(
        f'from no_such_package import Metric\n{text}\ntest_evaluator = dict(type=Metric)\n'
    )
    cfg = read_config(str(path))
    assert cfg.to_dict()['test_evaluator'] == dict(type='no_such_package.Metric')
    assert complexity.config_size(cfg) == (160, 160)
    with pytest.raises(ImportError, match='no_such_package'):
        _ = cfg.test_evaluator.type


# Swapping


@pytest.mark.parametrize('name', HOSTS)
def test_swap_changes_the_hosts_and_nothing_else(folder, tmp_path, capsys, name):
    part, before, after, module = HOSTS[name]
    (tmp_path / 'deeper').mkdir()
    base = tmp_path / f'{name}.py'
    base.write_text((folder / f'{name}.py').read_text())
    for out, relative in ((tmp_path / 'my.py', '.'), (tmp_path / 'deeper' / 'my.py', '..')):
        run_swap(base, out)
        assert f'model.{part}: {before} -> {after}' in capsys.readouterr().out
        text = out.read_text()
        assert f'from {module} import {after}\n' in text
        assert f'    from {relative}{name} import *\n' in text
        cfg, stock = Config.fromfile(out), Config.fromfile(base)
        assert f'{cfg.model[part].type.__module__}.'.startswith(f'{module}.')
        assert cfg.model[part].type.__name__ == after
        expected = stock.to_dict()
        expected['custom_imports'] = dict(imports=['sapa_mm'], allow_failed_imports=False)
        expected['model'][part] |= dict(type=f'{module}.{after}', upsample_cfg=SAPA_B)
        assert cfg.to_dict() == expected


@pytest.mark.parametrize('name', HOSTS)
def test_a_swapped_one_trains_and_predicts(folder, name):
    out = folder / f'swapped_{name}.py'
    run_swap(folder / f'{name}.py', out, '--force')
    cfg = offline(read_config(str(out)))
    step_and_predict(cfg, build(cfg))


def test_arguments_that_the_new_host_does_not_take(folder, tmp_path):
    own = folder / 'own_head.py'
    own.write_text(
        BASED.format('segmentor')
        + "custom_imports = dict(imports=['json'], allow_failed_imports=True)\n"
        "model.update(dict(decode_head=dict(interpolate_mode='nearest')))\n"
    )
    run_swap(own, folder / 'my_head.py', '--options', 'kernel_size=3')
    cfg = Config.fromfile(folder / 'my_head.py')
    assert 'interpolate_mode' not in cfg.model.decode_head
    assert cfg.model.decode_head.upsample_cfg == SAPA_B | dict(kernel_size=3)
    assert cfg.custom_imports == dict(imports=['json', 'sapa_mm'], allow_failed_imports=True)


def test_hosts_in_a_list_and_those_that_have_an_upsampler(folder):
    own = folder / 'own_neck.py'
    own.write_text(
        BASED.format('detector')
        + "model.update(dict(neck=[model.neck | dict(upsample_cfg=dict(mode='bilinear'))]))\n"
    )
    run_swap(own, folder / 'my_neck.py')
    (neck,) = Config.fromfile(folder / 'my_neck.py').model.neck
    assert neck.type.__name__ == 'GuidedFPN'
    assert neck.upsample_cfg == SAPA_B
    swap.main([str(folder / 'my_neck.py'), '--upsampler', 'carafe', '-o', str(folder / 'again.py')])
    (neck,) = Config.fromfile(folder / 'again.py').model.neck
    assert neck.type.__name__ == 'GuidedFPN'
    assert neck.upsample_cfg == dict(type='CARAFE')


def test_a_part_of_another_framework(folder):
    run_swap(folder / 'mask2former.py', folder / 'my_mask2former.py')
    decoder = Config.fromfile(folder / 'my_mask2former.py').model.decode_head.pixel_decoder
    assert decoder.type.__module__.startswith('sapa_mm.detection.')
    assert decoder.type.__name__ == 'GuidedMSDeformAttnPixelDecoder'


def test_a_dumped_one_is_swapped_as_text(folder):
    Config.fromfile(folder / 'detector.py').dump(folder / 'dumped.py')
    run_swap(folder / 'dumped.py', folder / 'my_dumped.py')
    cfg = Config.fromfile(folder / 'my_dumped.py')
    assert (cfg.model.neck.type, cfg.default_scope) == ('GuidedFPN', 'mmdet')
    assert cfg.model.backbone.type == 'mmdet.models.backbones.resnet.ResNet'


def test_what_a_base_is_imported_from(tmp_path, monkeypatch, capsys):
    def module(path: str, folder: str) -> str:
        return base_module(tmp_path / path, tmp_path / folder)

    for name in ('a', 'b', 'a/b', 'site-packages/some_package/configs'):
        (tmp_path / name).mkdir(parents=True)
    assert module('base.py', '.') == '.base'
    assert module('a/b/base.py', 'a') == '.b.base'
    assert module('a/base.py', 'a/b') == '..base'
    assert module('b/base.py', 'a/b') == '...b.base'
    installed = 'site-packages/some_package/configs/base.py'
    (tmp_path / 'site-packages/some_package/__init__.py').touch()
    with pytest.raises(ToolError, match='Python names'):
        module(installed, 'a')
    monkeypatch.syspath_prepend(tmp_path / 'site-packages')
    assert module(installed, 'a') == 'some_package.configs.base'
    for name in ('faster-rcnn.py', '2x.py', 'class.py'):
        with pytest.raises(ToolError, match='Python names'):
            module(name, '.')


# The other tools


def test_visualize_draws_the_same(folder, tmp_path, image):
    text = TEXTS['guided_segmentor']
    weights = checkpoint(text, tmp_path / 'weights.pth')
    pictures = []
    for config in (text, folder / 'guided_segmentor.py'):
        out = tmp_path / config.parent.name
        arguments = [config, weights, image, '--out-dir', out, '--steps', 'c2_c1']
        visualize.main([str(argument) for argument in arguments])
        pictures.append(np.asarray(Image.open(out / 'image_c2_c1.png')))
    assert np.array_equal(*pictures)


def test_superpixels_are_the_same(folder, tmp_path, image):
    text = TEXTS['clustering']
    weights = checkpoint(text, tmp_path / 'weights.pth')
    pictures = []
    for config in (text, folder / 'clustering.py'):
        out = tmp_path / f'{config.parent.name}.png'
        superpixels.main([str(a) for a in (config, weights, image, '--out', out)])
        pictures.append(np.asarray(Image.open(out)))
    assert np.array_equal(*pictures)


def test_complexity_and_benchmark_count_the_same(folder):
    text, new = TEXTS['guided_segmentor'], folder / 'guided_segmentor.py'
    cfgs = [read_config(str(path)) for path in (text, new)]
    assert complexity.config_size(cfgs[0]) == complexity.config_size(cfgs[1]) == (160, 160)
    assert count(cfgs[0], (64, 64)) == count(cfgs[1], (64, 64))

    def seconds(call: Callable[[], object]) -> tuple[float, float]:
        call()
        return 1.0, 1.0

    names = [str(new), str(folder / 'detector.py')]
    rows = benchmark.compare(names, (64, 64), 1, 1, torch.device('cpu'), seconds)
    assert rows[0].flops == count(cfgs[0], (64, 64)).flops
    assert rows[1].parameters == count(read_config(names[1]), (64, 64)).params


def test_export_builds_the_same(folder, tmp_path):
    weights = checkpoint(TEXTS['guided_segmentor'], tmp_path / 'weights.pth')
    image = torch.randn(1, 3, 64, 64)
    logits = []
    for config in (TEXTS['guided_segmentor'], folder / 'guided_segmentor.py'):
        subject, size = read_model(str(config), weights, None)
        assert size == (160, 160)
        logits.append(subject.model(image))
    assert torch.equal(*logits)
    with pytest.raises(ToolError, match='mmdet, FasterRCNN; detectors are not exported'):
        read_model(str(folder / 'detector.py'), None, None)


def test_compare_writes_the_same_variants(folder, tmp_path):
    written = []
    for config in (TEXTS['segmentor'], folder / 'segmentor.py'):
        out = tmp_path / config.parent.name
        options = {'train_cfg.max_iters': 7}
        paths = write_variants(str(config), ['nearest', 'sapa-b'], options, out)
        written.append([without_marks(Config.fromfile(p).to_dict()) for p in paths.values()])
    assert written[0] == written[1]
    assert written[1][1]['model']['decode_head']['upsample_cfg'] == SAPA_B
    assert [entry['type'] for entry in written[1][1]['test_evaluator']] == [
        'IoUMetric',
        'BoundaryIoU',
    ]


@pytest.mark.parametrize('name', ['guided_segmentor', 'detector'])
def test_predictions_are_drawn(folder, tmp_path, toy_data, monkeypatch, name):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'toy').symlink_to(toy_data)
    monkeypatch.chdir(tmp_path)
    weights = checkpoint(folder / f'{name}.py', tmp_path / 'weights.pth')
    pictures = []
    # What a run writes beside its logs has import paths for types.
    (tmp_path / 'run').mkdir()
    Config.fromfile(folder / f'{name}.py').dump(tmp_path / 'run' / 'config.py')
    for cfg in (
        read_config(str(folder / f'{name}.py')),
        quickstart_report.config_of(tmp_path / 'run'),
    ):
        path = tmp_path / f'{len(pictures)}.png'
        draw_predictions(path, {'new': (cfg, str(weights))}, 1, 'cpu')
        pictures.append(np.asarray(Image.open(path)))
    assert np.array_equal(*pictures)
    assert len(np.unique(pictures[0].reshape(-1, pictures[0].shape[2]), axis=0)) > 100


@pytest.mark.parametrize('name', HOSTS)
@pytest.mark.parametrize('tool', ['train', 'test'])
def test_the_frameworks_script_is_found(folder, name, tool):
    config = str(folder / f'{name}.py')
    script, arguments, settings = launch.prepare(tool, [config, '--work-dir', 'x'])
    framework = {'segmentor': 'mmseg', 'detector': 'mmdet'}[name]
    assert script == launch.find_script(framework, tool)
    assert arguments == [config, '--work-dir', 'x']
    assert settings is None


def test_options_of_a_run_without_a_gpu(folder, monkeypatch):
    config = folder / 'synchronized.py'
    config.write_text(
        'from mmengine.model import MMSeparateDistributedDataParallel\n'
        'from torch.nn import SyncBatchNorm\n' + BASED.format('segmentor') + 'model.update('
        'dict(decode_head=dict(norm_cfg=dict(type=SyncBatchNorm))))\n'
        'model_wrapper_cfg = dict(type=MMSeparateDistributedDataParallel)\n'
    )
    monkeypatch.setattr(launch, 'without_accelerator', lambda: True)
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '0')
    _, arguments, settings = launch.prepare('train', [str(config), '--launcher', 'pytorch'])
    added = ['env_cfg.dist_cfg.backend=gloo', 'model.decode_head.norm_cfg.type=BN']
    assert arguments[-3:] == ['--cfg-options', *added]
    assert settings == {'backend': 'gloo'}


def test_mixed_precision_is_refused_on_a_cpu(folder, monkeypatch):
    config = folder / 'mixed.py'
    config.write_text(
        'from mmengine.optim import AmpOptimWrapper\n'
        + BASED.format('segmentor')
        + 'optim_wrapper.update(type=AmpOptimWrapper)\n'
    )
    monkeypatch.setattr('mmengine.device.get_device', lambda: 'cpu')
    with pytest.raises(ToolError, match=r'optim_wrapper\.type=AmpOptimWrapper'):
        launch.prepare('train', [str(config)])


# Two iterations, and a test of what they gave, in processes of their own.
@pytest.mark.slow
def test_a_swapped_detector_trains_by_its_own_script_and_is_tested(folder, tmp_path, toy_data):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'toy').symlink_to(toy_data)
    config = folder / 'swapped.py'
    run_swap(folder / 'detector.py', config)
    own = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'train.py'
    short = ['train_cfg.max_iters=2', 'train_cfg.val_interval=5']
    commands = [
        (own, config, '--work-dir', 'work', '--cfg-options', *short),
        ('-m', 'sapa_mm', 'test', config, 'work/iter_2.pth', '--work-dir', 'test')
        + ('--cfg-options', 'model.test_cfg.rcnn.score_thr=0.0'),
    ]
    for command in commands:
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', *map(str, command)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-4000:]
    weights = torch.load(tmp_path / 'work' / 'iter_2.pth')['state_dict']
    assert 'neck.upsamplers.c2_c1.key_proj.weight' in weights
    (log,) = (tmp_path / 'test').glob('*/*.json')
    assert 'coco/bbox_mAP' in json.loads(log.read_text())
