"""Every config of SegNet is what its name and its page say, builds, trains a step and predicts."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, init_default_scope
from testing_configs import ROOT, build, load, offline, samples, step_and_predict, train_step
from torch import nn

from sapa_mm.tools.presets import upsampler_config

FAMILY = ROOT / 'configs' / 'segnet'
CONFIGS = sorted(FAMILY.glob('*.py'))
TINY = sorted(FAMILY.glob('segnet-tiny_*.py'))
FULL = sorted(FAMILY.glob('segnet_vgg16_*.py'))
# What each adds to SegNet with VGG-16; see configs/segnet/README.md.
ADDED = {
    'max-unpooling': 0,
    'nearest': 0,
    'bilinear': 0,
    'deconv': 9_766_336,
    'carafe': 383_028,
    'index-net': 19_547_392,
    'a2u': 56_126,
    'sapa-i': 0,
    'sapa-b': 100_416,
    'sapa-g': 149_157,
}
ENCODER = 14_723_136
DECODER = 14_716_160
DATA = {'camvid-360x480': 11, 'sunrgbd-480x480': 37}


def parts(path: Path) -> list[str]:
    """The fields of a config's name."""
    return path.stem.split('_')


def fields(path: Path) -> str:
    return '-'.join(parts(path)[:-2] + parts(path)[-1:])


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def narrow(cfg: Config) -> Config:
    """SegNet with the same steps, and an encoder whose features are few."""
    cfg = offline(cfg)
    widths = (4, 8, 8, 16, 16)
    cfg.model.backbone = dict(type='SegNetBasic', channels=widths, kernel_size=3)
    cfg.model.decode_head.in_channels = (*widths, 16)
    cfg.model.decode_head.widths = ((16, 16), (16, 8), (8,), (8, 4), (4,))
    return cfg


def test_there_are_all_models():
    assert {(parts(p)[2], parts(p)[-1]) for p in FULL} == {(n, d) for n in ADDED for d in DATA}
    assert {parts(p)[1] for p in TINY} == ADDED.keys() - {'deconv', 'index-net'}
    assert sorted(TINY + FULL) == CONFIGS


@pytest.mark.parametrize('path', FULL, ids=fields)
def test_config(path):
    cfg = load(path)
    name, length, data = parts(path)[2:]
    assert cfg.custom_imports.imports == ['sapa_mm']
    assert cfg.model.decode_head.upsample_cfg == upsampler_config(name)
    assert cfg.model.backbone.init_cfg.checkpoint == 'torchvision://vgg16_bn'
    assert length == f'1xb{cfg.train_dataloader.batch_size}-{cfg.train_cfg.max_epochs}e'
    assert data.endswith('x'.join(map(str, cfg.crop_size)))
    assert tuple(cfg.model.data_preprocessor.size) == tuple(cfg.crop_size)
    init_default_scope('mmseg')
    with torch.device('meta'):
        whole = MODELS.build(offline(cfg).model)
    assert count(whole.backbone) == ENCODER
    assert count(whole.decode_head.upsamplers) == ADDED[name]
    assert count(whole.decode_head) == DECODER + (64 * 9 + 1) * DATA[data] + ADDED[name]
    model = build(narrow(cfg))
    assert len(model.decode_head.upsamplers) == 5
    assert list(model.decode_head.blocks) == ['c6_c5', 'c5_c4', 'c4_c3', 'c3_c2', 'c2_c1']
    assert model.decode_head.num_classes == DATA[data]
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    assert all(g['lr'] == 0.01 and g['momentum'] == 0.9 for g in optimizer.param_groups)
    train_step(model, optimizer, samples(cfg), part='decode_head')
    assert 'param_scheduler' not in cfg  # the learning rate is constant
    size = (67, 41)
    with torch.no_grad():
        meta = dict(img_shape=size, ori_shape=size)
        logits = model.eval().encode_decode(torch.randn(1, 3, *size), [meta])
    assert logits.shape == (1, DATA[data], *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize('path', TINY, ids=fields)
def test_tiny_config(path):
    cfg = load(path)
    assert cfg.model.decode_head.upsample_cfg == upsampler_config(parts(path)[1])
    assert parts(path)[2] == f'1xb{cfg.train_dataloader.batch_size}-{cfg.train_cfg.max_iters}'
    cfg = offline(cfg)
    model = build(cfg)
    assert model.decode_head.loss_decode.class_weight[3:5] == (0.149, 1.0)
    logged = step_and_predict(cfg, model, part='decode_head')
    assert 'decode.loss_ce' in logged
    size = (45, 31)
    with torch.no_grad():
        meta = dict(img_shape=size, ori_shape=size)
        logits = model.eval().encode_decode(torch.randn(1, 3, *size), [meta])
    assert logits.shape == (1, 11, *size)


@pytest.mark.parametrize('path', [*FULL[:2], TINY[0]], ids=fields)
def test_the_framework_builds_the_rest_and_reads_what_it_dumps(path):
    cfg = load(path)
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()
    init_default_scope('mmseg')
    for loader, split in ((cfg.train_dataloader, 'train'), (cfg.test_dataloader, 'test')):
        assert all(TRANSFORMS.build(transform) for transform in loader.dataset.pipeline)
        dataset = DATASETS.build(dict(loader.dataset, lazy_init=True))
        assert len(dataset.metainfo['classes']) == cfg.model.decode_head.num_classes
        assert Path(dataset.data_prefix['img_path']).name.startswith(split)


@pytest.mark.parametrize('path', CONFIGS, ids=fields)
def test_nothing_but_the_upsampling_differs_from_nearest(path):
    def rest(cfg: Config) -> dict:
        model = cfg.to_dict()
        del model['model']['decode_head']['upsample_cfg'], model['upsampler']
        return model

    name = parts(path)[1 if path in TINY else 2]
    assert rest(load(path)) == rest(load(Path(str(path).replace(f'_{name}_', '_nearest_'))))


def test_page_and_metafile_list_every_config():
    page = (FAMILY / 'README.md').read_text()
    assert sorted(re.findall(r'\]\((segnet[^)]*\.py)\)', page)) == [p.name for p in CONFIGS]
    rows = re.findall(
        r'^\| [^|]+ \| ([\d,]+) \| \[VGG-16\]\(segnet_vgg16_([a-z0-9-]+)_', page, re.M
    )
    assert {name: int(added.replace(',', '')) for added, name in rows} == ADDED
    metafile = yaml.safe_load((FAMILY / 'metafile.yml').read_text())
    assert metafile['Collections'][0]['README'] == 'configs/segnet/README.md'
    assert [ROOT / model['Config'] for model in metafile['Models']] == FULL
    for path, model in zip(FULL, metafile['Models'], strict=True):
        assert model['Name'] == path.stem
        assert model['Metadata']['Batch Size'] == load(path).train_dataloader.batch_size
        data = model['Metadata']['Training Data']
        assert data == {'camvid': 'CamVid', 'sunrgbd': 'SUN RGB-D'}[parts(path)[-1].split('-')[0]]
