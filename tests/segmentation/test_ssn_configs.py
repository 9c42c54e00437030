"""Every config of SSN is what its name says, builds, trains a step, and runs on data."""

import copy
import re

import pytest
import torch
import yaml
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, TRANSFORMS, init_default_scope
from testing_configs import ROOT, load, samples

FAMILY = ROOT / 'configs' / 'ssn'
CONFIGS = sorted(FAMILY.glob('*.py'))
FULL = [path for path in CONFIGS if '300k' in path.name]
PARAMETERS = {'ssn': 214_578, 'hcssn': 230_962}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config(path):
    cfg = copy.deepcopy(load(path))
    assert cfg.custom_imports.imports == ['sapa_mm']
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    model.init_weights()
    kind, _, batch, crop = re.fullmatch(
        r'(hcssn|ssn)(-tiny)?_1xb(\d)-.*-(\d+)x\4', path.stem
    ).groups()
    assert bool(model.features.clusterings) == (kind == 'hcssn')
    if 'tiny' not in path.name:
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[kind]
    assert cfg.train_dataloader.batch_size == int(batch)
    assert cfg.crop_size == (int(crop), int(crop))
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    model.data_preprocessor.size = None
    model.train_cfg['num_superpixels'] = 16
    data = samples(cfg)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    logged = model.train_step(data, optim_wrapper)
    assert {'loss_reconstruction', 'loss_compactness'} <= logged.keys()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.any(), name
        assert not p.equal(before[name]), name
    model.test_cfg['numbers'] = (9, 30)
    (result,) = model.eval().test_step({key: values[:1] for key, values in samples(cfg).items()})
    assert result.pred_superpixels.data.shape == (2, 64, 64)


@pytest.mark.parametrize('path', FULL, ids=lambda path: path.stem)
def test_schedule_is_the_papers(path):
    cfg = load(path)
    assert cfg.train_cfg.max_iters == 300_000
    assert cfg.model.train_cfg == dict(num_superpixels=169, iterations=5)
    assert cfg.model.test_cfg.iterations == 10
    init_default_scope('mmseg')
    model = torch.nn.Linear(1, 1)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    (scheduler,) = (
        PARAM_SCHEDULERS.build(dict(item, optimizer=optim_wrapper)) for item in cfg.param_scheduler
    )
    rates = {}
    for step in range(300_001):
        if step in (0, 150_000, 300_000):
            rates[step] = optim_wrapper.get_lr()['lr'][0]
        optim_wrapper.optimizer.step()
        scheduler.step()
    assert rates == pytest.approx({0: 5e-5, 150_000: 2.525e-5, 300_000: 5e-7}, rel=1e-3)


def test_transforms_build():
    cfg = load(FULL[0])
    init_default_scope('mmseg')
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        for item in loader.dataset.pipeline:
            TRANSFORMS.build(item)
    assert 'annotations' in cfg.test_dataloader.dataset.pipeline[-1].meta_keys


def test_metafile_lists_the_configs_and_the_page_names_them():
    metafile = yaml.safe_load((FAMILY / 'metafile.yml').read_text())
    listed = [ROOT / model['Config'] for model in metafile['Models']]
    assert sorted(listed) == [path for path in CONFIGS if 'toy' not in path.name]
    page = (FAMILY / 'README.md').read_text()
    for path, model in zip(listed, metafile['Models'], strict=True):
        assert model['Name'] == path.stem
        assert model['Metadata']['Batch Size'] == load(path).train_dataloader.batch_size
    assert [path.name for path in CONFIGS if f']({path.name})' not in page] == []
