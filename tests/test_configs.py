"""Every config builds, trains a step and predicts, and so do the README's own changes."""

import copy
import re
from pathlib import Path

import pytest
import torch
import yaml
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmseg.structures import SegDataSample

from sapa_mm.upsamplers import SAPA

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('[!_]*/*.py'))
SIMILARITY = {'i': 'inner', 'b': 'bilinear', 'g': 'gated'}


def offline(cfg: Config) -> Config:
    """The model without its pretrained weights and without synchronized normalization."""
    cfg = copy.deepcopy(cfg)
    if 'pretrained' in cfg.model:
        cfg.model.pretrained = None
    cfg.model.backbone.init_cfg = None
    for part in ('backbone', 'neck', 'decode_head'):
        norm = cfg.model.get(part, {}).get('norm_cfg')
        if norm:
            norm.type = 'BN'
    return cfg


def sample(cfg: Config, size: int = 64) -> tuple[torch.Tensor, BaseDataElement]:
    """A random image with its truth, as the framework's own pipelines pack them."""
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    shape = dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size))
    if cfg.default_scope == 'mmseg':
        classes = cfg.model.decode_head.num_classes
        truth = SegDataSample(metainfo=shape)
        truth.gt_sem_seg = PixelData(data=torch.randint(0, classes, (1, size, size)))
    else:
        truth = DetDataSample(metainfo=dict(shape, scale_factor=(1.0, 1.0)))
        truth.gt_instances = InstanceData(
            bboxes=torch.tensor([[8.0, 8.0, 40.0, 56.0]]), labels=torch.tensor([3])
        )
    return image, truth


def step_and_predict(cfg: Config) -> torch.nn.Module:
    """Train one step with the config's own optimizer, then predict."""
    init_default_scope(cfg.default_scope)
    cfg = offline(cfg)
    model = MODELS.build(cfg.model)
    model.init_weights()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    image, truth = sample(cfg)
    # Two images: a batch norm over one 1x1 map has nothing to normalize.
    batch = {'inputs': [image, image.flip(2)], 'data_samples': [truth, copy.deepcopy(truth)]}
    if cfg.default_scope == 'mmseg':
        model.data_preprocessor.size = tuple(image.shape[1:])
    before = {n: p.detach().clone() for n, p in model.named_parameters() if 'upsamplers' in n}
    losses = model.train_step(batch, optim_wrapper)
    assert all(v.isfinite() for v in losses.values())
    after = dict(model.named_parameters())
    assert all((after[n] != p).any() for n, p in before.items() if n.endswith('query_proj.weight'))
    with torch.no_grad():
        (result,) = model.eval().test_step({'inputs': [image], 'data_samples': [truth]})
    if cfg.default_scope == 'mmseg':
        assert result.pred_sem_seg.data.shape == (1, 64, 64)
    else:
        assert set(result.pred_instances.keys()) >= {'bboxes', 'labels', 'scores'}
    return model


def upsamplers(model: torch.nn.Module) -> list[SAPA]:
    return [m for m in model.modules() if isinstance(m, SAPA)]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config(path):
    cfg = Config.fromfile(path)
    assert cfg.custom_imports.imports == ['sapa_mm']
    model = step_and_predict(cfg)
    found = upsamplers(model)
    letter = re.search(r'sapa-([ibg])', path.stem)
    if letter is None:
        assert not found
        return
    assert {m.similarity for m in found} == {SIMILARITY[letter[1]]}
    assert len(found) == (6 if 'segformer' in path.stem else 3)


def test_segformer_b1_with_sapa_b_has_the_papers_size():
    # 13.7 M and the .10 M that Table 2 of the paper adds.
    cfg = Config.fromfile(CONFIGS[0].parent / 'segformer_mit-b1_sapa-b_8xb2-160k_ade20k-512x512.py')
    init_default_scope('mmseg')
    model = MODELS.build(offline(cfg).model)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 13.8
    assert sum(p.numel() for m in upsamplers(model) for p in m.parameters()) == 104_832


def readme_changes() -> dict[str, str]:
    """The README's blocks that turn a stock config into a guided one, by framework."""
    blocks = re.findall(r'```python\n(_base_ = .*?)```', (ROOT / 'README.md').read_text(), re.S)
    return {re.search(r"'(mm\w+)::", block)[1]: block for block in blocks}


@pytest.mark.parametrize('framework', ['mmseg', 'mmdet'])
def test_the_readmes_change_to_a_stock_config(framework, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(readme_changes()[framework])
    model = step_and_predict(Config.fromfile(path))
    assert len(upsamplers(model)) == {'mmseg': 6, 'mmdet': 3}[framework]


@pytest.mark.parametrize('page', ['README.md', 'configs/sapa/README.md'])
def test_relative_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r'\]\((?!http)([^)#]+)\)', text)
    assert links
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_metafiles_list_every_config():
    for metafile in (ROOT / 'configs').glob('*/metafile.yml'):
        models = yaml.safe_load(metafile.read_text())['Models']
        listed = {ROOT / model['Config'] for model in models}
        assert listed == set(metafile.parent.glob('*.py')) - set(metafile.parent.glob('*toy*'))
        assert all(model['Name'] == Path(model['Config']).stem for model in models)
