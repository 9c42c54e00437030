"""Every config of matting is what its name and its page say, builds, trains a step and predicts."""

import copy
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from testing_configs import ROOT, load, offline, train_step
from torch import nn

from sapa_mm.tools.presets import upsampler_config

FAMILY = ROOT / 'configs' / 'matting'
CONFIGS = sorted(FAMILY.glob('*.py'))
TINY = sorted(FAMILY.glob('matting-tiny_*.py'))
FULL = sorted(FAMILY.glob('matting_r34-*.py'))
NETWORK = 8_049_003
# What each adds to the network; see configs/matting/README.md.
POOL = {
    'bilinear': 0,
    'carafe': 263_824,
    'index-net': 12_263_424,
    'a2u': 19_608,
    'sapa-i': 0,
    'sapa-b': 35_072,
    'sapa-g': 35_588,
}
STRIDE = {
    'nearest': 0,
    'bilinear': 0,
    'carafe': 263_824,
    'index-net': 12_263_424,
    'a2u-static-pw-cw': 102_544,
    'a2u-static-cw': 25_744,
    'a2u-hybrid-cw': 44_176,
    'a2u-hybrid-cs': 18_776,
    'a2u-dynamic-cw': 199_824,
    'a2u-dynamic-cs': 19_608,
}
# Those of the paper's ablations, whose kernels and normalization differ from a2u-dynamic-cs.
ABLATIONS = {
    'a2u-dynamic-cs-k1': dict(kernel_size=1),
    'a2u-dynamic-cs-k5': dict(kernel_size=5),
    'a2u-dynamic-cs-e1': dict(encoder_kernel=1),
    'a2u-dynamic-cs-e3': dict(encoder_kernel=3),
    'a2u-dynamic-cs-softmax': dict(normalization='softmax'),
}
# Two group normalizations of the guide's channels more than the other one has.
NORM = 4 * (256 + 128 + 64 + 64)
PAIRED = {'a2u-dynamic-cs': 38_184, 'a2u-dynamic-cs-norm': 38_184 + NORM}
DOWNSAMPLES = {'pool': 'max_pool', 'stride': 'conv', 'paired': 'paired'}
ADDED = {
    **{('pool', name): added for name, added in POOL.items()},
    **{('stride', name): added for name, added in STRIDE.items()},
    **{('paired', name): added for name, added in PAIRED.items()},
}
SIZE = 64


def parts(path: Path) -> tuple[str, str]:
    """How the encoder halves, and the upsampler, of a config's name."""
    model, name = path.stem.split('_')[:2] if path in TINY else path.stem.split('_')[1:3]
    return model.partition('-')[2], name


def fields(path: Path) -> str:
    return '-'.join(parts(path))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Two foregrounds, a background and two merged images, in Composition's folders."""
    root = tmp_path_factory.mktemp('matting')
    rng = np.random.default_rng(0)
    ramp = np.clip(np.linspace(-1, 2, 80), 0, 1)
    alpha = np.broadcast_to((255 * ramp).round(), (72, 80)).astype(np.uint8)
    trimap = np.where((alpha > 0) & (alpha < 255), 128, alpha).astype(np.uint8)
    files = {
        'Training_set/fg/a': 0, 'Training_set/fg/b': 0, 'Training_set/bg/c': 0,
        'Training_set/alpha/a': alpha, 'Training_set/alpha/b': alpha[:, ::-1],
        'Test_set/merged/a_0': 0, 'Test_set/merged/a_1': 0,
        'Test_set/trimaps/a_0': trimap, 'Test_set/trimaps/a_1': trimap, 'Test_set/alpha/a': alpha,
    }  # fmt: skip
    for name, image in files.items():
        path = root / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, int):
            image = rng.integers(0, 256, (72, 80, 3), np.uint8)
        assert cv2.imwrite(str(path), image)
    return root


def read(cfg: Config, data: Path, split: str) -> torch.utils.data.Dataset:
    """The config's own data set, with the test's files and crops of its size."""
    options = copy.deepcopy(cfg[f'{split}_dataloader'].dataset)
    options.data_root = str(data)
    for transform in options.pipeline:
        if transform.type in ('CropUnknown', 'ResizeSquare'):
            transform.size = SIZE
    return DATASETS.build(options)


def step_and_predict(cfg: Config, data: Path) -> nn.Module:
    """Train one step on the config's own samples, and evaluate what the network predicts."""
    np.random.seed(0)  # noqa: NPY002  as mmengine seeds it
    torch.manual_seed(0)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(offline(cfg).model)
    model.init_weights()
    train = read(cfg, data, 'train')
    batch = pseudo_collate([train[i % 2] for i in range(2)])
    assert batch['inputs'][0].shape == (3, SIZE, SIZE)
    logged = train_step(model, build_optim_wrapper(model, cfg.optim_wrapper), batch, 'blocks')
    gradients = {n: p.grad for n, p in model.upsamplers.named_parameters()}
    # Without a normalization A2U's sigmoid is saturated at first, and of exactly 0 gradient.
    saturated = cfg.model.upsample_cfg.type == 'A2U'
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        assert saturated or gradient.any(), name
    assert logged.keys() == {'loss', 'loss_alpha', 'loss_composition'}
    test = read(cfg, data, 'test')
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = {}
    with torch.no_grad():
        for i in range(len(test)):
            batch = pseudo_collate([test[i]])
            evaluator.process(model.eval().test_step(batch), batch)
    metrics = evaluator.evaluate(len(test))
    assert metrics.keys() == {'SAD', 'MSE', 'Grad', 'Conn'}
    assert 0 < metrics['SAD'] < 72 * 80 / 1000
    return model


def test_there_are_all_configs():
    assert {parts(p) for p in FULL} == ADDED.keys() | {('stride', name) for name in ABLATIONS}
    assert {parts(p)[1] for p in TINY} == {
        'bilinear', 'carafe', 'a2u', 'a2u-paired', 'sapa-b', 'sapa-g'
    }  # fmt: skip
    assert sorted(TINY + FULL) == CONFIGS


@pytest.mark.parametrize('path', FULL, ids=fields)
def test_config(path, data):
    cfg = load(path)
    down, name = parts(path)
    assert cfg.custom_imports.imports == ['sapa_mm']
    assert cfg.model.backbone.init_cfg.checkpoint == 'torchvision://resnet34'
    assert cfg.model.downsample_cfg == dict(type=DOWNSAMPLES[down])
    assert path.stem.endswith('_1xb16-180k_composition1k-512x512')
    assert cfg.train_dataloader.batch_size == 16
    assert cfg.train_cfg.max_iters == 180_000
    assert cfg.param_scheduler.milestones == [120_000, 156_000]
    crop = next(t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'CropUnknown')
    assert crop.size == cfg.crop_size[0] == cfg.crop_size[1] == 512
    model = step_and_predict(cfg, data)
    if name in ABLATIONS:
        same = dict(type='A2U', mode='dynamic')
        assert cfg.model.upsample_cfg == {**same, **ABLATIONS[name]}
    else:
        assert count(model) == NETWORK + ADDED[down, name]
        assert count(model.upsamplers) == ADDED[down, name]
    rates = {id(p): g['lr'] for g in optimizer(model, cfg).param_groups for p in g['params']}
    assert {rates[id(p)] for p in model.backbone.parameters()} == {1e-4}
    others = [p for n, p in model.named_parameters() if not n.startswith('backbone.')]
    # Among them are A2U's filters, whose names also begin with 'encoder'.
    assert {rates[id(p)] for p in others} == {0.01}


def optimizer(model: nn.Module, cfg: Config) -> torch.optim.Optimizer:
    return build_optim_wrapper(model, cfg.optim_wrapper).optimizer


@pytest.mark.parametrize('path', TINY, ids=fields)
def test_tiny_config(path, data):
    cfg = load(path)
    assert cfg.model.upsample_cfg == upsampler_config(parts(path)[1])
    assert path.stem.endswith('_1xb8-400_toy-96x96')
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.max_iters) == (8, 400)
    assert cfg.crop_size == (96, 96)
    model = step_and_predict(cfg, data)
    assert model.downsample == ('paired' if 'paired' in path.stem else 'max_pool')
    assert count(model) - count(model.upsamplers) == 223_267
    assert all(group['lr'] == 0.005 for group in optimizer(model, cfg).param_groups)


@pytest.mark.parametrize('path', CONFIGS, ids=fields)
def test_nothing_but_the_upsampling_differs_from_bilinear(path):
    def rest(cfg: Config) -> dict:
        found = cfg.to_dict()
        found.pop('upsampler', None)
        for key in ('upsample_cfg', 'downsample_cfg'):
            found['model'].pop(key, None)
        return found

    cfg = load(path)
    bilinear = TINY[2] if path in TINY else FAMILY / FULL[3].name
    assert parts(bilinear)[1] == 'bilinear'
    assert rest(cfg) == rest(load(bilinear))
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()


def test_page_and_metafile_list_every_full_config():
    page = (FAMILY / 'README.md').read_text()
    assert sorted(re.findall(r'\]\((matting_[^)]*\.py)\)', page)) == [p.name for p in FULL]
    rows = re.findall(
        r'^\| \[[^\]]+\]\((matting_[^)]+)\) \| ([\d,]+) \| ([^|]+) \|(.*) \|$', page, re.M
    )
    shown = {parts(FAMILY / name): int(added.replace(',', '')) for name, added, *_ in rows}
    assert shown == ADDED
    metafile = yaml.safe_load((FAMILY / 'metafile.yml').read_text())
    assert metafile['Collections'][0]['README'] == 'configs/matting/README.md'
    assert [ROOT / model['Config'] for model in metafile['Models']] == FULL
    results = {
        m['Config']: m['Results'][0]['Metrics'] for m in metafile['Models'] if 'Results' in m
    }
    for name, _, _, figures in rows:
        metrics = results[f'configs/matting/{name}']
        paper = 'SAPA' if '-pool_' in name else 'A2U'
        kinds = [
            f'{kind} (reported by the {paper} paper)' for kind in ('SAD', 'MSE', 'Grad', 'Conn')
        ]
        assert metrics == dict(zip(kinds, map(float, figures.split('|')), strict=True))
