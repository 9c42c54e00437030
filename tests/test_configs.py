"""Every config is what its name and its page say, builds, trains a step and predicts."""

import copy
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, TRANSFORMS, init_default_scope
from PIL import Image
from testing_configs import (
    ROOT,
    SIZE,
    build,
    load,
    offline,
    predict,
    samples,
    step_and_predict,
    train_step,
    trained,
)
from torch import nn

from sapa_mm import upsamplers

# Families whose configs are not of a host and an upsampler, and have tests of their own.
OTHERS = ('bts', 'camvid', 'dorn', 'hc', 'matting', 'reconstruction', 'segnet', 'ssn')
CONFIGS = sorted(
    path for path in (ROOT / 'configs').glob('[!_]*/*.py') if path.parent.name not in OTHERS
)
FAMILIES = sorted({path.parent for path in CONFIGS} | {ROOT / 'configs' / 'hc'})
PAGES = ['README.md', '.github/CONTRIBUTING.md', 'tools/README.md'] + [
    str(path.relative_to(ROOT))
    for rooms in ('configs', 'sapa_mm')
    for path in sorted((ROOT / rooms).glob('*/README.md'))
]


class Model(NamedTuple):
    """What a model's configs have in common, whatever the upsampler."""

    baseline: str  # the config without upsamplers, under configs/ or of the framework, if any
    host: str
    steps: tuple[str, ...]
    learning_rate: float  # of the host, and so of the upsamplers
    width: int | tuple[int, ...] = 256  # of every step, or of each
    size: tuple[int, int] = (640, 640)  # of the images that the page's complexity is for


FPN = ('c4_c3', 'c3_c2', 'c2_c1')
SEGFORMER = ('c4_c3', 'c4_c2', 'c4_c1', 'c3_c2', 'c3_c1', 'c2_c1')
SEGFORMER_B1 = 'segformer_mit-b1_{}_8xb2-160k_ade20k-512x512.py'
MASK2FORMER = 'mask2former_swin-b-in22k-384x384-pre_{}_8xb2-160k_ade20k-640x640.py'
MODEL_OF = {
    'segformer_mit-b1': Model(
        f'baseline/{SEGFORMER_B1.format("bilinear")}',
        'GuidedSegformerHead',
        SEGFORMER,
        6e-4,  # the head's is ten times the backbone's
        size=(512, 512),
    ),
    'segformer_mit-t': Model(
        'sapa/segformer_mit-t_bilinear_1xb8-600_toy-160x160.py',
        'GuidedSegformerHead',
        SEGFORMER,
        1e-3,
        width=64,
    ),
    'maskformer_swin-b': Model(
        'baseline/maskformer_swin-b_nearest_8xb2-160k_ade20k-640x640.py',
        'GuidedPixelDecoder',
        FPN,
        6e-5,
    ),
    'mask2former_swin-b-in22k-384x384-pre': Model(
        f'baseline/{MASK2FORMER.format("bilinear")}',
        'GuidedMSDeformAttnPixelDecoder',
        ('c2_c1',),
        1e-4,
    ),
    'fpn_r50': Model(
        'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
        'GuidedFPN',
        FPN,
        0.01,
        size=(512, 512),
    ),
    'faster-rcnn_r50_fpn': Model(
        'baseline/faster-rcnn_r50_fpn_nearest_1x_coco.py', 'GuidedFPN', FPN, 0.02, size=(800, 1344)
    ),
    'faster-rcnn_r18_fpn': Model('', 'GuidedFPN', FPN, 0.01, width=64),
    'mask-rcnn_r50_fpn': Model(
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'GuidedFPN', FPN, 0.02, size=(800, 1344)
    ),
    'retinanet_r50_fpn': Model(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'GuidedFPN',
        FPN[:2],
        0.01,
        size=(800, 1344),
    ),
    'yolox_s': Model(
        'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
        'GuidedYOLOXPAFPN',
        FPN[1:],
        0.01,
        width=(256, 128),
    ),
    'rtmdet_s': Model(
        'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py',
        'GuidedCSPNeXtPAFPN',
        FPN[1:],
        0.004,
        width=(256, 128),
    ),
}
SAPA_B = dict(similarity='bilinear', embed_dims=32, kernel_size=5, normalization='softmax')
#: Type and attributes of the upsamplers by the field of the config's name that says them.
UPSAMPLERS = {
    'bilinear': None,
    'nearest': None,
    'carafe': ('CARAFE', dict(scale_factor=2, kernel_size=5, groups=1)),
    'index-net': ('IndexNet', dict(variant='hin')),
    'a2u': (
        'A2U',
        dict(mode='dynamic', kernel_size=3, encoder_kernel=6, channel_wise=False, paired=False),
    ),
    'dysample': (
        'DySample',
        dict(scale_factor=2, style='lp', groups=4, dynamic_scope=False),
    ),
    'dysample-plus': (
        'DySample',
        dict(scale_factor=2, style='lp', groups=4, dynamic_scope=True),
    ),
    'fade': ('FADE', dict(kernel_size=5)),
    'sapa-i': ('SAPA', dict(SAPA_B, similarity='inner', embed_dims=256)),
    'sapa-b': ('SAPA', SAPA_B),
    'sapa-p': ('SAPA', dict(SAPA_B, similarity='plain')),
    'sapa-g': (
        'SAPA',
        dict(SAPA_B, similarity='gated', self_projection='separate', self_input='normalized'),
    ),
}
ABLATIONS = {
    **{f'k{size}': dict(kernel_size=size) for size in (3, 7)},
    **{f'd{width}': dict(embed_dims=width) for width in (16, 64, 128)},
    **{name: dict(normalization=name) for name in ('none', 'relu', 'sigmoid', 'softplus')},
}
#: Standard deviations that the upsamplers' own initialization gives, and that of no host does.
INITIALIZATION = {
    'SAPA': ('query_proj.weight', 0.02),
    'CARAFE': ('content_encoder.weight', 0.001),
    'DySample': ('offset.weight', 0.001),
}


#: Who reports the results of a family, if it is not the SAPA paper.
SOURCES = {'hc': 'HC paper', 'dysample': 'authors', 'fade': 'authors'}


class Name(NamedTuple):
    """A config's name, taken apart."""

    model: Model
    upsampler: tuple[str, dict] | None
    batch_size: int | None
    length: str
    size: tuple[int, int] | None


def parse(path: Path) -> Name:
    """What the fields of a config's name say: model, upsampler, ablation, schedule and data."""
    model, rest = next(
        (MODEL_OF[key], path.stem.removeprefix(f'{key}_').split('_'))
        for key in MODEL_OF
        if path.stem.startswith(f'{key}_')
    )
    upsampler = UPSAMPLERS[rest.pop(0)]
    if rest[0] in ABLATIONS:
        upsampler = (upsampler[0], {**upsampler[1], **ABLATIONS[rest.pop(0)]})
    schedule, data = rest
    match = re.fullmatch(r'\d+xb(\d+)-(\w+)', schedule)
    batch_size, length = (int(match[1]), match[2]) if match else (None, schedule)
    size = re.search(r'(\d+)x(\d+)$', data)
    return Name(model, upsampler, batch_size, length, size and (int(size[1]), int(size[2])))


def host_of(model: nn.Module) -> nn.Module | None:
    """The part of a model that has upsamplers, if one has."""
    hosts = [module for module in model.modules() if hasattr(module, 'upsamplers')]
    assert len(hosts) <= 1
    return hosts[0] if hosts else None


def check_optimizer(host: nn.Module, optim_wrapper: OptimWrapper, cfg: Config, rate: float) -> None:
    """All of the host trains at one rate and decay, the upsamplers included.

    Only where the config leaves the decay off all normalization layers, or biases, those of the
    upsamplers have none.
    """
    groups = {id(p): g for g in optim_wrapper.param_groups for p in g['params']}
    rates = [groups[id(p)]['lr'] for p in trained(host).values()]
    assert rates == pytest.approx([rate] * len(rates))
    decay = cfg.optim_wrapper.optimizer.weight_decay
    options = cfg.optim_wrapper.get('paramwise_cfg', {})
    exempt = {kind for kind in ('norm', 'bias') if options.get(f'{kind}_decay_mult') == 0}
    for module in host.upsamplers.modules():
        norm = isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
        for key, parameter in module.named_parameters(recurse=False):
            expected = 0 if ('norm' if norm else key) in exempt else decay
            assert groups[id(parameter)]['weight_decay'] == expected


def check_upsamplers(host: nn.Module, name: Name) -> None:
    """The upsamplers, and their host, are those that the config's name says."""
    kind, attributes = name.upsampler
    assert type(host).__name__ == name.model.host
    assert tuple(host.upsamplers) == name.model.steps
    width = name.model.width
    widths = width if isinstance(width, tuple) else (width,) * len(name.model.steps)
    for module, width in zip(host.upsamplers.values(), widths, strict=True):
        assert type(module) is getattr(upsamplers, kind)
        assert module.in_channels == module.guide_channels == width
        assert {key: getattr(module, key) for key in attributes} == attributes
        if kind in INITIALIZATION and attributes.get('similarity') != 'inner':
            parameter, std = INITIALIZATION[kind]
            value = module.get_parameter(parameter).detach()
            assert value.std() == pytest.approx(std, rel=0.1), parameter


def row_of(path: Path) -> list[str] | None:
    """The cells that a config's page has about it, after that with its link."""
    page = (path.parent / 'README.md').read_text()
    found = re.findall(rf'^\|.*\]\({re.escape(path.name)}\) \| (.*) \|$', page, re.M)
    assert len(found) == ('toy' not in path.name), f'{len(found)} rows of {path.name}'
    return found[0].split(' | ') if found else None


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config(path):
    name, cfg = parse(path), offline(load(path))
    assert cfg.custom_imports.imports == ['sapa_mm']
    model = build(cfg)
    host = host_of(model)
    steps = dict(host.upsamplers.items()) if host else {}
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert bool(host) == bool(name.upsampler)
    if host:
        check_upsamplers(host, name)
        check_optimizer(host, optim_wrapper, cfg, name.model.learning_rate)
    sizes = {}
    for step, module in steps.items():
        module.register_forward_hook(
            lambda module, args, out, step=step: sizes.update({step: [a.shape[2:] for a in args]})
        )
    batch = samples(cfg)
    train_step(model, optim_wrapper, batch)
    predict(model, batch)
    assert list(sizes) == list(steps)

    row = row_of(path)
    if row and host:
        parameters = sum(p.numel() for p in host.upsamplers.parameters())
        ratio = [side / SIZE for side in name.model.size]
        flops = sum(
            module.flops(*[(round(h * ratio[0]), round(w * ratio[1])) for h, w in sizes[step]])
            for step, module in steps.items()
        )
        assert row[:2] == [f'{parameters:,}', f'{flops / 1e9:.2f}']


def without_upsamplers(cfg: Config) -> dict:
    """A config as it would be had its host no upsamplers."""
    cfg = copy.deepcopy(cfg)
    cfg.pop('upsampler', None)
    model = cfg.model
    head = model.get('decode_head', {})
    for part in (model.get('neck'), head, head.get('pixel_decoder')):
        if part and part.pop('upsample_cfg', None):
            part.type = part.type.replace('Guided', '')
    return cfg.to_dict()


COMPARED = [path for path in CONFIGS if parse(path).model.baseline]


@pytest.mark.parametrize('path', COMPARED, ids=lambda path: path.stem)
def test_nothing_but_the_upsampling_differs_from_the_baseline(path):
    expected = load(parse(path).model.baseline).to_dict()
    expected['custom_imports'] = dict(imports=['sapa_mm'], allow_failed_imports=False)
    # The upsampler has taken the place of YOLOX's interpolation.
    expected['model'].get('neck', {}).pop('upsample_cfg', None)
    assert without_upsamplers(load(path)) == expected


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_schedule_and_data_are_those_of_the_name(path):
    name, cfg = parse(path), load(path)
    if name.batch_size:
        assert cfg.train_dataloader.batch_size == name.batch_size
    train = cfg.train_cfg
    epochs = dict([('1x', 12), ('300e', 300)]).get(name.length)
    if epochs:
        assert train.max_epochs == epochs
    else:
        assert train.max_iters == int(name.length.replace('k', '000'))
    if cfg.default_scope == 'mmseg':
        assert cfg.model.data_preprocessor['size'] == name.size


@pytest.mark.parametrize(
    'model', [m for m in MODEL_OF.values() if 'ade20k' in m.baseline], ids=lambda m: m.baseline
)
def test_pipelines_give_images_of_the_size_in_the_name(model, tmp_path):
    cfg = load(model.baseline)
    init_default_scope('mmseg')
    data = dict(img_path=str(tmp_path / 'image.png'), seg_map_path=str(tmp_path / 'truth.png'))
    data.update(reduce_zero_label=True, seg_fields=[], label_map=None)
    image = np.random.default_rng(0).integers(256, size=(48, 64, 3), dtype=np.uint8)
    Image.fromarray(image).save(data['img_path'])
    Image.fromarray(image[..., 0] % 4).save(data['seg_map_path'])
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    for loader, shape in (
        (cfg.train_dataloader, model.size),
        # The shorter side, and the longer in proportion.
        (cfg.val_dataloader, (model.size[0], round(model.size[1] * 64 / 48))),
    ):
        packed = Compose(loader.dataset.pipeline)(dict(data))
        batch = {key: [value] for key, value in packed.items()}
        batch = preprocessor(batch, training=loader is cfg.train_dataloader)
        assert batch['inputs'].shape[2:] == shape


def test_maskformers_baseline_is_put_together_of_stock_parts():
    cfg = copy.deepcopy(load(MODEL_OF['maskformer_swin-b'].baseline))
    mask2former = copy.deepcopy(load(f'mmseg::mask2former/{MASK2FORMER.replace("_{}", "")}'))
    data = load('mmseg::_base_/datasets/ade20k_640x640.py')
    shared = cfg.model.backbone.keys() & mask2former.model.backbone.keys()
    assert len(shared) == 15
    init_cfgs = cfg.model.backbone.pop('init_cfg'), mask2former.model.backbone.pop('init_cfg')
    for key in shared - {'init_cfg'}:
        assert cfg.model.backbone[key] == mask2former.model.backbone[key], key
    # Upstream's and the fork's lie on different hosts.
    for init_cfg in init_cfgs:
        init_cfg.checkpoint = init_cfg.checkpoint.rpartition('/')[2]
    assert init_cfgs[0] == init_cfgs[1]
    assert cfg.model.decode_head.in_channels == mask2former.model.decode_head.in_channels
    assert cfg.model.data_preprocessor == mask2former.model.data_preprocessor
    assert cfg.train_dataloader.dataset == data.train_dataloader.dataset
    assert cfg.val_dataloader.dataset == cfg.test_dataloader.dataset == data.val_dataloader.dataset


@pytest.mark.parametrize('model', MODEL_OF.values(), ids=MODEL_OF)
def test_the_framework_builds_the_rest_and_reads_what_it_dumps(model):
    path = next(p for p in CONFIGS if parse(p).model is model and parse(p).upsampler)
    cfg = load(path)
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()
    init_default_scope(cfg.default_scope)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert all(TRANSFORMS.build(transform) for transform in loader.dataset.pipeline)
    layer = nn.Linear(1, 1)
    optimizer = build_optim_wrapper(layer, cfg.optim_wrapper)
    length = 100  # of an epoch
    for scheduler in cfg.param_scheduler:
        by_epoch = scheduler.get('convert_to_iter_based') and dict(epoch_length=length)
        PARAM_SCHEDULERS.build(dict(scheduler, optimizer=optimizer, **by_epoch or {}))
    rate = optimizer.get_lr()['lr'][0] / cfg.optim_wrapper.optimizer.lr
    warmup = cfg.param_scheduler[0]
    start = 1 / (warmup.end * length) ** 2 if 'Quadratic' in warmup.type else 1.0
    assert rate == pytest.approx(warmup.get('start_factor', start))


def test_segformer_b1_with_sapa_b_has_the_papers_size():
    # 13.7 M and the .10 M that Table 2 of the paper adds.
    model = build(offline(load(f'sapa/{SEGFORMER_B1.format("sapa-b")}')))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 13.8
    added = sum(p.numel() for p in host_of(model).upsamplers.parameters())
    assert added == 104_832


def readme_changes() -> dict[str, str]:
    """The README's blocks that turn a stock config into a guided one, by framework."""
    blocks = re.findall(r'```python\n(_base_ = .*?)```', (ROOT / 'README.md').read_text(), re.S)
    return {re.search(r"'(mm\w+)::", block)[1]: block for block in blocks}


@pytest.mark.parametrize('framework', ['mmseg', 'mmdet'])
def test_the_readmes_change_to_a_stock_config(framework, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(readme_changes()[framework])
    cfg = offline(load(path))
    model = build(cfg)
    step_and_predict(cfg, model)
    assert len(host_of(model).upsamplers) == {'mmseg': 6, 'mmdet': 3}[framework]


@pytest.mark.parametrize('page', PAGES)
def test_relative_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r'\]\((?!http)([^)#]+)(?:#[^)]*)?\)', text)
    assert links
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize('family', FAMILIES, ids=lambda family: family.name)
def test_metafile_and_page_list_every_config_with_the_same_results(family):
    metafile = yaml.safe_load((family / 'metafile.yml').read_text())
    models = metafile['Models']
    (collection,) = metafile['Collections']
    assert collection['README'] == str((family / 'README.md').relative_to(ROOT))
    listed = [ROOT / model['Config'] for model in models]
    assert sorted(listed) == sorted(set(family.glob('*.py')) - set(family.glob('*toy*')))
    for model, path in zip(models, listed, strict=True):
        assert model['Name'] == path.stem
        assert model['In Collection'] == collection['Name']
        batch_size = load(path).train_dataloader.batch_size
        assert model['Metadata']['Batch Size'] == batch_size * (4 if '4xb' in path.stem else 8)
        result = row_of(path)[-1]
        if 'Results' not in model:
            assert result == '-'
            continue
        ((metric, value),) = model['Results'][0]['Metrics'].items()
        source = SOURCES.get(family.name, 'SAPA paper')
        assert metric.endswith(f' (reported by the {source})')
        assert float(result) == value
