"""Every config is what its name says, trains a step and predicts."""

from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from sapa_mm import upsamplers
from sapa_mm.reconstruction import ReconstructionMetric

FOLDER = Path(__file__).parents[2] / 'configs' / 'reconstruction'
NAME = 'autoencoder_{}_1xb100-100e_{}-32x32.py'
DATASETS = ('fashion-mnist', 'mnist')
A2U = dict(mode='static', channel_wise=True, kernel_size=1, encoder_kernel=4, sets=4, paired=False)
SAPA = dict(kernel_size=5, normalization='softmax')
#: A field of the config's name says what D is, the class of U, and its attributes.
ROWS = {
    'conv-nearest': ('conv', 'SingleInputUpsampler', {}),
    'conv-bilinear': ('conv', 'SingleInputUpsampler', {}),
    'conv-deconv': ('conv', 'SingleInputUpsampler', dict(ratio=2)),
    'conv-pixel-shuffle': ('conv', 'SingleInputUpsampler', dict(ratio=2)),
    'conv-carafe': ('conv', 'CARAFE', dict(kernel_size=1)),
    'conv-a2u': ('conv', 'A2U', A2U),
    'conv-sapa-i': ('conv', 'SAPA', dict(SAPA, similarity='inner')),
    'conv-sapa-b': ('conv', 'SAPA', dict(SAPA, similarity='bilinear')),
    'conv-sapa-g': ('conv', 'SAPA', dict(SAPA, similarity='gated')),
    'max-pool-carafe': ('max_pool', 'CARAFE', dict(kernel_size=1)),
    'max-pool-a2u': ('max_pool', 'A2U', A2U),
    'max-pool-index-net-hin': ('max_pool', 'IndexNet', dict(variant='hin')),
    'max-pool-index-net-m2o': ('max_pool', 'IndexNet', dict(variant='m2o')),
    'max-pool-index-net-o2o': ('max_pool', 'IndexNet', dict(variant='o2o')),
    'paired-max-unpooling': ('paired', 'MaxUnpooling', {}),
    'paired-index-net-hin': ('paired', 'IndexNet', dict(variant='hin')),
    'paired-index-net-m2o': ('paired', 'IndexNet', dict(variant='m2o')),
}
#: Where the class of U does not tell, mmcv's name of the layer does.
LAYERS = {
    'conv-nearest': 'nearest',
    'conv-bilinear': 'bilinear',
    'conv-deconv': 'deconv',
    'conv-pixel-shuffle': 'pixel_shuffle',
}


def read(row: str, dataset: str = 'fashion-mnist') -> Config:
    return Config.fromfile(FOLDER / NAME.format(row, dataset))


def test_every_row_has_a_config_of_each_dataset():
    expected = {NAME.format(row, dataset) for row in ROWS for dataset in DATASETS}
    assert {path.name for path in FOLDER.glob('*.py')} == expected


@pytest.mark.parametrize('row', ROWS)
def test_row(row):
    cfg = read(row)
    downsample, kind, attributes = ROWS[row]
    assert cfg.model.downsample_cfg == dict(type=downsample)
    if row in LAYERS:
        assert cfg.model.upsample_cfg == dict(type=LAYERS[row])
    model = MODELS.build(cfg.model)
    model.init_weights()
    assert [type(module) for module in model.upsamplers.values()] == [getattr(upsamplers, kind)] * 3
    for name, value in attributes.items():
        assert {getattr(module, name) for module in model.upsamplers.values()} == {value}, name

    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    batch = {'inputs': torch.rand(4, 1, 32, 32)}
    losses = model.train_step(batch, optim_wrapper)
    # The images are noise and the network starts near 0: it is the mean of U(0, 1).
    assert 0.3 < losses['loss'] < 0.9
    still = {name for name, value in model.named_parameters() if torch.equal(before[name], value)}
    # The softmax over CARAFE's one point is 1 whatever its layers give.
    assert all(name.startswith('upsamplers.') for name in still)
    assert bool(still) == (kind == 'CARAFE')
    with torch.no_grad():
        predictions = model.eval().test_step(batch)
    assert [prediction['pred'].shape for prediction in predictions] == [(1, 32, 32)] * 4


@pytest.mark.parametrize(('variant', 'convolutions'), [('hin', 1), ('m2o', 4), ('o2o', 4)])
def test_index_net_of_max_pooling_is_linear_with_context(variant, convolutions):
    model = MODELS.build(read(f'max-pool-index-net-{variant}').model)
    for upsampler in model.upsamplers.values():
        layers = [module for module in upsampler.modules() if not list(module.children())]
        assert [type(layer) for layer in layers] == [torch.nn.Conv2d] * convolutions
        assert {layer.kernel_size for layer in layers} == {(4, 4)}
        channels = upsampler.in_channels
        assert {layer.groups for layer in layers} == {channels if variant == 'o2o' else 1}


@pytest.mark.parametrize('row', ROWS)
def test_datasets_differ_in_the_data_alone(row):
    fashion, digits = (read(row, dataset).to_dict() for dataset in DATASETS)
    for cfg, folder in ((fashion, 'data/fashion_mnist'), (digits, 'data/mnist')):
        assert cfg.pop('data_root') == folder
        for loader, split in (('train', 'train'), ('val', 'test'), ('test', 'test')):
            dataset = cfg[f'{loader}_dataloader']['dataset']
            assert dataset.pop('data_root') == folder
            assert dataset == dict(type='IdxImages', split=split, size=32)
    assert fashion == digits


def test_recipe():
    cfg = read('conv-sapa-b')
    assert cfg.custom_imports.imports == ['sapa_mm']
    assert cfg.default_scope == 'mmseg'  # whose script tools/train.py runs
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.01, momentum=0.9)
    assert cfg.train_cfg.max_epochs == 100
    scheduler = dict(type='MultiStepLR', milestones=[50, 70, 85], gamma=0.1, by_epoch=True)
    assert cfg.param_scheduler == scheduler
    assert cfg.train_dataloader.batch_size == 100
    assert cfg.train_dataloader.sampler.shuffle
    assert not cfg.val_dataloader.sampler.shuffle
    assert cfg.val_evaluator == dict(type=ReconstructionMetric.__name__)


def test_page_and_metafile_list_every_row():
    page = (FOLDER / 'README.md').read_text()
    models = yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']
    assert {Path(model['Config']).name for model in models} == {
        path.name for path in FOLDER.glob('*.py')
    }
    assert all(model['Name'] == Path(model['Config']).stem for model in models)
    for row in ROWS:
        assert f'[{row}]({NAME.format(row, "fashion-mnist")})' in page
