"""Every config of DORN and HCDORN is what its name and its page say, builds, steps and predicts."""

import copy
import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, TRANSFORMS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from testing_configs import ROOT, load, offline, trained
from torch import nn

from sapa_mm.segmentation import HCResNet

FAMILY = ROOT / 'configs' / 'dorn'
FULL = sorted(FAMILY.glob('*_r101_*.py'))
TOY = sorted(FAMILY.glob('*-tiny_*.py'))
HEAD = 67_656_840
BACKBONE = {'dorn': 42_623_936, 'hcdorn': 42_623_936 + 294_912}
RESULTS = ('d1', 'd2', 'd3', 'abs_rel', 'log10', 'rmse')


def name_of(path: Path) -> str:
    return path.stem.split('_')[0]


def make(path: Path) -> tuple[Config, nn.Module]:
    cfg = offline(load(path))
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return cfg, model


def batch(size: tuple[int, int], n: int) -> dict:
    torch.manual_seed(0)
    samples = []
    for _ in range(n):
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size))
        depth = torch.linspace(1, 9, size[1]).expand(1, *size).clone()
        depth[:, : size[0] // 4] = 0
        sample.gt_depth_map = PixelData(data=depth)
        samples.append(sample)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(n)]
    return dict(inputs=images, data_samples=samples)


def step(model: nn.Module, optim_wrapper: OptimWrapper, size: tuple[int, int], n: int) -> None:
    """One step reaches every parameter that is not frozen, and moves those of the head."""
    model.train()
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    data = model.data_preprocessor(batch(size, n), training=True)
    loss, logged = model.parse_losses(model(**data, mode='loss'))
    assert logged['decode.loss_ordinal'] > 0
    optim_wrapper.backward(loss)
    assert all(p.grad is not None for p in trained(model).values())
    optim_wrapper.step()
    moved = {name for name, p in trained(model).items() if not p.equal(before[name])}
    assert all(p.isfinite().all() for p in model.parameters())
    # The residual branches of a new backbone start at zero, and some parameters move later.
    assert moved >= {name for name in before if 'decode_head' in name or 'clusterings' in name}


def predict(model: nn.Module, size: tuple[int, int]) -> None:
    with torch.no_grad():
        (sample,) = model.eval().test_step(batch(size, 1))
    depth = sample.pred_depth_map.data
    bins = model.decode_head.bins
    assert depth.shape == (1, *size)
    assert bins.min_depth < depth.min() <= depth.max() < bins.max_depth


@pytest.mark.slow
@pytest.mark.parametrize('path', FULL, ids=name_of)
def test_full_config(path):
    cfg, model = make(path)
    assert sum(p.numel() for p in model.decode_head.parameters()) == HEAD
    assert sum(p.numel() for p in model.backbone.parameters()) == BACKBONE[name_of(path)]
    assert isinstance(model.backbone, HCResNet) == (name_of(path) == 'hcdorn')
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    groups = {id(p): g for g in optim_wrapper.param_groups for p in g['params']}
    for name, parameter in trained(model).items():
        part = 1 if name.startswith('backbone') else 20 if name.endswith('bias') else 10
        assert groups[id(parameter)]['lr'] == pytest.approx(part * 1e-4), name
        assert groups[id(parameter)]['weight_decay'] == 5e-4
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert all(
        ('.stem.' in name or '.layer1.' in name)
        or isinstance(model.get_submodule(name.rpartition('.')[0]), nn.BatchNorm2d)
        for name in frozen
    )
    assert not any(name.startswith(('backbone.stem', 'backbone.layer1')) for name in trained(model))
    step(model, optim_wrapper, (257, 353), 1)
    mean = model.backbone.layer4[0].bn1.running_mean
    assert not mean.any()  # as it was built
    predict(model, (257, 353))


@pytest.mark.parametrize('path', TOY, ids=name_of)
def test_toy_config(path):
    cfg, model = make(path)
    assert len(trained(model)) == len(list(model.parameters()))
    step(model, build_optim_wrapper(model, cfg.optim_wrapper), (161, 161), 2)
    predict(model, (161, 161))


def test_there_are_both_models_in_both_sizes():
    assert [name_of(path) for path in FULL] == ['dorn', 'hcdorn']
    assert [name_of(path) for path in TOY] == ['dorn-tiny', 'hcdorn-tiny']


@pytest.mark.parametrize('paths', [FULL, TOY], ids=['full', 'toy'])
def test_the_two_differ_in_the_backbone_and_what_follows_from_it_alone(paths):
    plain, clustered = (load(path).to_dict() for path in paths)
    assert plain['model']['backbone'] != clustered['model']['backbone']
    for cfg in (plain, clustered):
        del cfg['model']['backbone']
        assert cfg['model']['decode_head'].pop('feature_size')
        assert cfg['model']['decode_head'].pop('pool_size')
    assert plain == clustered


def test_the_schedule():
    cfg = load(FULL[0])
    assert cfg.train_cfg.max_iters == 3_000_000 and cfg.train_dataloader.batch_size == 3
    optimizer = build_optim_wrapper(nn.Linear(1, 1), cfg.optim_wrapper)
    (schedule,) = copy.deepcopy(cfg.param_scheduler)
    scheduler = PARAM_SCHEDULERS.build(dict(schedule, end=1001, optimizer=optimizer))
    for _ in range(400):
        scheduler.step()
    assert optimizer.get_lr()['lr'][0] == pytest.approx(1e-3 * 0.6**0.9)


@pytest.mark.parametrize('path', FULL + TOY, ids=lambda path: path.stem)
def test_the_framework_builds_the_rest_and_reads_what_it_dumps(path):
    cfg = load(path)
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()
    init_default_scope(cfg.default_scope)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert all(TRANSFORMS.build(transform) for transform in loader.dataset.pipeline)


def test_metafile_and_page_list_both_with_the_same_results():
    metafile = yaml.safe_load((FAMILY / 'metafile.yml').read_text())
    assert metafile['Collections'][0]['README'] == 'configs/dorn/README.md'
    listed = {ROOT / model['Config']: model for model in metafile['Models']}
    assert sorted(listed) == FULL
    page = (FAMILY / 'README.md').read_text()
    for path, model in listed.items():
        assert model['Name'] == path.stem and model['Metadata']['Batch Size'] == 3
        (row,) = re.findall(rf'^\|.*\]\({re.escape(path.name)}\) \| (.*) \|$', page, re.M)
        cells = row.split(' | ')
        assert cells[0] == f'{BACKBONE[name_of(path)] + HEAD:,}'
        metrics = model['Results'][0]['Metrics']
        values = [metrics[f'{name} (reported by the HC paper)'] for name in RESULTS]
        assert values == [float(cell) for cell in cells[1:7]]
