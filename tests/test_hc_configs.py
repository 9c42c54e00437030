"""Every config of HC is what its name says, builds, trains a step and predicts."""

import copy
import re
from pathlib import Path
from typing import NamedTuple

import mmseg.models.decode_heads
import pytest
import torch
from mmengine.config import Config
from mmseg.models.backbones import ResNetV1c
from mmseg.models.necks import FPN
from testing_configs import ROOT, SIZE, build, load, offline, samples, step_and_predict
from torch import Tensor, nn

from sapa_mm.segmentation import HCFPN, HCResNet
from sapa_mm.segmentation.clustered_features import ClusterDecoding

# The one that trains on toy data shares nothing with them but the backbone.
CONFIGS = [
    path for path in sorted((ROOT / 'configs' / 'hc').glob('*.py')) if 'toy' not in path.name
]
DEFAULT_LEVELS = 2


class Model(NamedTuple):
    """What a model's configs have in common."""

    head: str
    stock: str  # mmseg's config of the same model, by depth, GPUs, schedule and data


MODEL_OF = {
    'hcfcn-32': Model('FCNHead', 'fcn/fcn_r{}-d8_{}'),
    'hcpspnet': Model('PSPHead', 'pspnet/pspnet_r{}-d8_{}'),
    'hcdeeplabv3': Model('ASPPHead', 'deeplabv3/deeplabv3_r{}-d8_{}'),
    'hcfpn': Model('FPNHead', 'sem_fpn/fpn_r{}_{}'),
}


class Data(NamedTuple):
    """What the configs of a dataset have in common."""

    dataset: str
    classes: int
    iterations: int
    learning_rate: float
    side: int  # of the square crop
    scale: tuple[int, int]  # of which the images have .5 to 2 times
    stock: str  # GPUs, schedule and data of mmseg's configs


DATA = {
    'cityscapes': Data(
        'CityscapesDataset',
        19,
        50_000,
        0.01,
        1024,
        (2048, 1024),
        '4xb2-80k_cityscapes-512x1024',
    ),
    'ade20k': Data(
        'ADE20KDataset',
        150,
        125_000,
        0.02,
        512,
        (2048, 512),
        '4xb4-160k_ade20k-512x512',
    ),
}


class Name(NamedTuple):
    """A config's name, taken apart."""

    family: str
    depth: int
    levels: int
    batch_size: int
    iterations: int
    data: str
    size: tuple[int, int]

    @property
    def stock(self) -> Config:
        """mmseg's config of the model, with this crop and without dilation."""
        name = MODEL_OF[self.family].stock.format(self.depth, DATA[self.data].stock)
        cfg = copy.deepcopy(load(f'mmseg::{name}.py'))
        cfg.model.data_preprocessor.size = self.size
        # mmseg's FPN for ADE20K has a depth of 50, whatever its name says.
        cfg.model.pretrained = f'open-mmlab://resnet{self.depth}_v1c'
        cfg.model.backbone.update(depth=self.depth, dilations=(1, 1, 1, 1), strides=(1, 2, 2, 2))
        return cfg


def parse(path: Path) -> Name:
    """What the fields of a config's name say."""
    match = re.fullmatch(
        r'(hc[a-z0-9-]+)_r(\d+)(?:-l(\d))?_8xb(\d+)-(\d+)k_(\w+)-(\d+)x(\d+)', path.stem
    )
    family, depth, levels, batch_size, thousands, data, height, width = match.groups()
    return Name(
        family,
        int(depth),
        DEFAULT_LEVELS if levels is None else int(levels),
        int(batch_size),
        int(thousands) * 1000,
        data,
        (int(height), int(width)),
    )


def ids(path: Path) -> str:
    return path.stem


def without_clustering(cfg: Config) -> dict:
    """A config's model as it would be if nothing clustered."""
    model = copy.deepcopy(cfg.model)
    model.backbone.type = 'ResNetV1c'
    del model.backbone['levels']
    if model.decode_head.type == 'HCHead':
        model.decode_head.type = model.decode_head.pop('head_type')
    if 'neck' in model:
        model.neck.type = {'HCFPN': 'FPN'}[model.neck.type]
    return model.to_dict()


def test_there_are_the_models_of_the_paper():
    names = {parse(path)[:3] + (parse(path).data,) for path in CONFIGS}
    assert len(names) == len(CONFIGS)
    assert names == {
        *((family, 101, 2, data) for family in MODEL_OF for data in DATA),
        *(('hcfcn-32', depth, levels, 'cityscapes') for depth in (18, 50) for levels in range(5)),
    }


@pytest.mark.parametrize('path', CONFIGS, ids=ids)
def test_schedule_and_data_are_the_papers(path):
    name, cfg = parse(path), load(path)
    data = DATA[name.data]
    assert cfg.custom_imports.imports == ['sapa_mm']
    assert name.iterations == data.iterations == cfg.train_cfg.max_iters
    assert name.size == (data.side, data.side)
    assert name.batch_size == cfg.train_dataloader.batch_size == 2  # of eight GPUs: 16

    assert cfg.train_cfg.type == 'IterBasedTrainLoop'
    interval = cfg.default_hooks.checkpoint.interval
    assert interval == cfg.train_cfg.val_interval and data.iterations % interval == 0
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum) == ('SGD', data.learning_rate, 0.9)
    (scheduler,) = cfg.param_scheduler
    assert (scheduler.type, scheduler.power, scheduler.eta_min) == ('PolyLR', 0.9, 0)
    assert (scheduler.begin, scheduler.end, scheduler.by_epoch) == (0, data.iterations, False)

    dataset = cfg.train_dataloader.dataset
    assert dataset.type == cfg.val_dataloader.dataset.type == data.dataset
    steps = {step.type: step for step in dataset.pipeline}
    assert tuple(steps['RandomCrop'].crop_size) == name.size
    assert tuple(steps['RandomResize'].ratio_range) == (0.5, 2.0)
    assert tuple(steps['RandomResize'].scale) == data.scale
    assert steps['RandomFlip'].prob == 0.5
    if name.depth == 101 and name.family == 'hcpspnet':  # one of each dataset, as it takes a second
        assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()


@pytest.mark.parametrize('path', CONFIGS, ids=ids)
def test_nothing_but_the_clustering_differs_from_the_stock_model(path):
    name, cfg = parse(path), load(path)
    assert without_clustering(cfg) == name.stock.model.to_dict()


def check_parts(model: nn.Module, name: Name) -> None:
    """The parts of a model are those that its config's name says."""
    data = DATA[name.data]
    backbone, head = model.backbone, model.decode_head
    assert type(backbone) is HCResNet
    assert (backbone.depth, backbone.levels) == (name.depth, name.levels)
    assert isinstance(head, getattr(mmseg.models.decode_heads, MODEL_OF[name.family].head))
    is_fpn = name.family == 'hcfpn'
    assert isinstance(head, ClusterDecoding) != is_fpn
    assert (type(model.neck) is HCFPN) if is_fpn else not model.with_neck
    heads = [head]
    if not is_fpn:
        # PSPNet's auxiliary loss.
        assert type(model.auxiliary_head) is mmseg.models.decode_heads.FCNHead
        assert model.auxiliary_head.in_index == 2
        assert model.auxiliary_head.loss_decode.loss_weight == 0.4
        heads.append(model.auxiliary_head)
    assert [h.num_classes for h in heads] == [data.classes] * len(heads)


@pytest.mark.parametrize('path', CONFIGS, ids=ids)
def test_config(path):
    name, cfg = parse(path), offline(load(path))
    model = build(cfg)
    check_parts(model, name)

    logged = step_and_predict(cfg, model, 'backbone.clusterings.')
    losses = {key for key in logged if key.endswith('loss_ce')}
    auxiliary = set() if name.family == 'hcfpn' else {'aux.loss_ce'}
    assert losses == {'decode.loss_ce', *auxiliary}

    clustered = [n for n, _ in model.named_parameters() if n.startswith('backbone.clusterings.')]
    assert len(clustered) == 2 * name.levels  # projections of points and clusters, without bias
    images = torch.zeros(1, 3, SIZE, SIZE)
    with torch.no_grad():
        features, logits = model.backbone(images), model(images, mode='tensor')
    assert [SIZE // x.shape[-1] for x in features] == [4, 8, 16, 32]
    finest = 32 >> name.levels
    strides = [(finest << i, finest << i + 1) for i in range(name.levels)]
    assert [
        (SIZE // a.weights.shape[-1], SIZE // a.size[1]) for a in features.assignments
    ] == strides
    assert SIZE // logits.shape[-1] == (4 if name.family == 'hcfpn' else finest)


# The smallest ResNet and the widths that go with it.
R18 = {
    'backbone.depth': 18,
    'neck.in_channels': [64, 128, 256, 512],
    'decode_head': dict(in_channels=512, channels=128),
    'auxiliary_head': dict(in_channels=256, channels=64),
}


def draw_norms(model: nn.Module) -> None:
    """Give normalization layers numbers of their own: new residual branches end in a zero."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.normal_(module.bias, 0.0, 0.2)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def results(model: nn.Module, batch: dict) -> dict[str, Tensor]:
    """Logits of the images, classes, and the losses of a training step with its dropout."""
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    with torch.no_grad():
        found = {'logits': model.eval()(**data, mode='tensor')}
        predicted = model(**copy.deepcopy(data), mode='predict')
        found |= {f'prediction {i}': x.seg_logits.data for i, x in enumerate(predicted)}
        torch.manual_seed(1)
        found |= model.train()(**data, mode='loss')
    return found


@pytest.mark.parametrize(
    'path',
    [
        ROOT / 'configs' / 'hc' / f'{model}_8xb2-50k_cityscapes-1024x1024.py'
        for model in ('hcfcn-32_r18-l0', 'hcpspnet_r101', 'hcdeeplabv3_r101', 'hcfpn_r101')
    ],
    ids=ids,
)
def test_level_0_is_the_stock_model_bit_for_bit(path):
    name, cfg = parse(path), offline(load(path))
    stock_cfg = offline(name.stock)
    others = ('decode_head', 'auxiliary_head') if name.family == 'hcfpn' else ('neck.in_channels',)
    narrow = {f'model.{key}': value for key, value in R18.items() if key not in others}
    cfg.merge_from_dict({**narrow, 'model.backbone.levels': 0})
    stock_cfg.merge_from_dict(narrow)
    ours, stock = build(cfg), build(stock_cfg)
    assert (type(ours.backbone), type(stock.backbone)) == (HCResNet, ResNetV1c)
    assert not stock.with_neck or type(stock.neck) is FPN
    draw_norms(stock)
    weights = copy.deepcopy(stock.state_dict())
    assert list(ours.state_dict()) == list(weights)
    ours.load_state_dict(weights, strict=True)
    batch = samples(cfg)
    got, expected = results(ours, batch), results(stock, batch)
    assert got.keys() == expected.keys()
    assert {'decode.loss_ce', 'logits', 'prediction 1'} <= expected.keys()
    for key, value in expected.items():
        assert value.isfinite().all()
        assert got[key].equal(value), key
    assert expected['prediction 0'].std(dim=(1, 2)).min() > 0
    # With the statistics that the training step has left in the normalization.
    for key, value in stock.state_dict().items():
        assert ours.state_dict()[key].equal(value), key


def test_the_pages_change_to_a_stock_config(tmp_path):
    page = (ROOT / 'configs' / 'hc' / 'README.md').read_text()
    (block,) = re.findall(r'```python\n(_base_ = .*?)```', page, re.S)
    path = tmp_path / 'mine.py'
    path.write_text(block)
    cfg = offline(load(path))
    model = build(cfg)
    step_and_predict(cfg, model, 'backbone.clusterings.')
    assert len(model.backbone.clusterings) == 2
    assert isinstance(model.decode_head, mmseg.models.decode_heads.PSPHead)
    assert isinstance(model.decode_head, ClusterDecoding)
