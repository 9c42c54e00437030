"""Every config of BTS is what its name and its page say, builds, trains a step and predicts."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, TRANSFORMS, init_default_scope
from testing_configs import ROOT, build, load, offline, samples, step_and_predict
from torch import nn

FAMILY = ROOT / 'configs' / 'bts'
CONFIGS = sorted(FAMILY.glob('bts_r50_*.py'))
TOY = sorted(FAMILY.glob('bts-tiny_*.py'))
STEPS = {'up5': (2048, 1024), 'up4': (512, 512), 'up3': (128, 256), 'up2': (128, 64)}
# What each adds to the 23,973,936 parameters of the decoder; see configs/bts/README.md.
UPSAMPLERS = {
    'nearest': (dict(type='nearest'), 0),
    'carafe': (dict(type='CARAFE'), 411_280),
    'index-net': (dict(type='IndexNet', variant='hin'), 44_193_536),
    'a2u': (dict(type='A2U', encoder_kernel=6, encoder_norm=True), 78_104),
    'sapa-b': (dict(type='SAPA', similarity='bilinear'), 159_104),
    'sapa-g': (dict(type='SAPA', similarity='gated'), 252_164),
}
RESULTS = ('d1', 'd2', 'd3', 'abs_rel', 'sq_rel', 'rmse', 'rmse_log', 'log10')


def upsampler_of(path: Path) -> str:
    return re.fullmatch(r'bts_r50_([a-z0-9-]+)_1xb4-50e_nyu-416x544', path.stem)[1]


def row_of(path: Path) -> list[str]:
    """The cells that the page has about a config, after that with its link."""
    page = (FAMILY / 'README.md').read_text()
    (found,) = re.findall(rf'^\|.*\]\({re.escape(path.name)}\) \| (.*) \|$', page, re.M)
    return found.split(' | ')


def test_there_are_the_models_of_table_4():
    assert {upsampler_of(path) for path in CONFIGS} == UPSAMPLERS.keys()


@pytest.mark.parametrize('path', CONFIGS, ids=upsampler_of)
def test_config(path):
    cfg = offline(load(path))
    assert cfg.custom_imports.imports == ['sapa_mm']
    options, added = UPSAMPLERS[upsampler_of(path)]
    assert cfg.model.decode_head.upsample_cfg == options
    model = build(cfg)
    head = model.decode_head
    assert {
        name: (module.in_channels, module.guide_channels)
        for name, module in head.upsamplers.items()
    } == STEPS
    in_upsamplers = sum(p.numel() for p in head.upsamplers.parameters())
    assert in_upsamplers == added
    assert sum(p.numel() for p in head.parameters()) == 23_973_936 + added
    assert row_of(path)[0] == f'{added:,}'
    logged = step_and_predict(cfg, model)
    assert 'decode.loss_silog' in logged


def test_the_encoder_alone_decays_and_its_first_layers_stay():
    cfg = offline(load(CONFIGS[-1]))
    model = build(cfg)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    groups = {id(p): g for g in optim_wrapper.param_groups for p in g['params']}
    frozen = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            frozen.add(name)
            continue
        group = groups[id(parameter)]
        assert group['lr'] == 1e-4
        assert group['weight_decay'] == (0.01 if name.startswith('backbone') else 0), name
    assert 'backbone.conv1.weight' in frozen
    norms = {
        f'backbone.{name}.{key}'
        for name, module in model.backbone.named_modules()
        if isinstance(module, nn.BatchNorm2d) and 'downsample' not in name
        for key in ('weight', 'bias')
    }
    assert len(norms) == 2 * (1 + 3 * 16)
    assert frozen == norms | {'backbone.conv1.weight'}
    before = model.backbone.bn1.running_mean.clone()
    data = model.data_preprocessor(samples(cfg), training=True)
    model.train()(**data, mode='loss')
    assert not model.backbone.bn1.running_mean.equal(before)


def test_the_learning_rate_falls_with_every_iteration():
    cfg = load(CONFIGS[0])
    assert cfg.train_cfg.max_epochs == 50
    assert cfg.train_dataloader.batch_size == 4
    length = 100  # of an epoch
    optimizer = build_optim_wrapper(nn.Linear(1, 1), cfg.optim_wrapper)
    (schedule,) = cfg.param_scheduler
    scheduler = PARAM_SCHEDULERS.build(dict(schedule, optimizer=optimizer, epoch_length=length))
    for _ in range(1234):
        scheduler.step()
    # mmengine ends with eta_min at the last iteration, not behind it.
    expected = (1e-4 - 1e-5) * (1 - 1234 / (50 * length - 1)) ** 0.9 + 1e-5
    assert optimizer.get_lr()['lr'] == pytest.approx(2 * [expected])


@pytest.mark.parametrize('path', CONFIGS, ids=upsampler_of)
def test_nothing_but_the_upsampling_differs_from_nearest(path):
    def rest(cfg: Config) -> dict:
        model = cfg.to_dict()
        del model['model']['decode_head']['upsample_cfg'], model['upsampler']
        return model

    assert rest(load(path)) == rest(load(FAMILY / 'bts_r50_nearest_1xb4-50e_nyu-416x544.py'))


@pytest.mark.parametrize('path', CONFIGS[:1] + TOY, ids=lambda path: path.stem)
def test_the_framework_builds_the_rest_and_reads_what_it_dumps(path):
    cfg = load(path)
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()
    init_default_scope(cfg.default_scope)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert all(TRANSFORMS.build(transform) for transform in loader.dataset.pipeline)


@pytest.mark.parametrize('path', TOY, ids=lambda path: path.stem)
def test_toy_config(path):
    cfg = offline(load(path))
    model = build(cfg)
    step_and_predict(cfg, model)
    assert all(p.requires_grad for p in model.decode_head.parameters())


def test_sapa_i_says_why_it_cannot_be():
    cfg = offline(load(CONFIGS[0]))
    cfg.model.decode_head.upsample_cfg = dict(type='SAPA', similarity='inner')
    with pytest.raises(ValueError, match=r'upsample_cfg: .*bilinear.*up5 2048 with 1024.*inner'):
        build(cfg)


def test_metafile_and_page_list_every_config_with_the_same_results():
    metafile = yaml.safe_load((FAMILY / 'metafile.yml').read_text())
    assert metafile['Collections'][0]['README'] == 'configs/bts/README.md'
    listed = {ROOT / model['Config']: model for model in metafile['Models']}
    assert sorted(listed) == CONFIGS
    for path, model in listed.items():
        assert model['Name'] == path.stem
        assert model['Metadata']['Batch Size'] == load(path).train_dataloader.batch_size
        metrics = model['Results'][0]['Metrics']
        values = [metrics[f'{name} (reported by the SAPA paper)'] for name in RESULTS]
        assert len(metrics) == len(RESULTS)
        assert values == [float(cell) for cell in row_of(path)[2:]]


def test_sizes_that_32_does_not_divide():
    cfg = offline(load(TOY[0]))
    model = build(cfg).eval()
    with torch.no_grad():
        image = torch.randn(1, 3, 67, 93)
        depth = model.encode_decode(image, [dict(img_shape=(67, 93), ori_shape=(67, 93))])
    assert depth.shape == (1, 1, 67, 93)
    assert 0 < depth.min() < depth.max() < 10
