"""Which checkpoints leave upsamplers without their weights, however they are loaded."""

from functools import partial

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.runner import Runner, load_checkpoint, save_checkpoint
from torch import nn

from sapa_mm.tools.configs import read_config
from sapa_mm.tools.errors import ToolError
from sapa_mm.tools.export.subjects import read_model
from sapa_mm.tools.inference import load_model
from sapa_mm.tools.weights import upsamplers_loaded, upsamplers_loaded_by_runners
from sapa_mm.upsamplers import build_steps

SAPA = dict(type='SAPA', similarity='bilinear', embed_dims=4)
STEPS = {'c3_c2': (4, 4), 'c2_c1': (4, 4)}
KEY = 'neck.upsamplers.c3_c2.query_proj.weight'


class Model(BaseModel):
    """A model with a backbone, and a neck that upsamples."""

    def __init__(self, upsample_cfg: dict | None = None):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.neck = nn.Module()
        self.neck.norm = nn.BatchNorm2d(4)
        if upsample_cfg:
            self.neck.upsamplers = build_steps(upsample_cfg, None, STEPS)

    def forward(self, *args, **kwargs):
        raise NotImplementedError


class Augmented(BaseTTAModel):
    """Test-time augmentation of the model."""

    def merge_preds(self, data_samples_list):
        raise NotImplementedError


@pytest.fixture
def save(tmp_path):
    """Writes a checkpoint of a model, or of a state dict, with what else it holds."""

    def save(weights, **others):
        state = weights.state_dict() if isinstance(weights, nn.Module) else weights
        save_checkpoint(dict(state_dict=state, **others), str(tmp_path / 'model.pth'))
        return str(tmp_path / 'model.pth')

    return save


def load(model, checkpoint, strict=False):
    with upsamplers_loaded(model, checkpoint, 'my.py'):
        load_checkpoint(model, checkpoint, strict=strict, logger='silent')


CONFIG = 'sapa_mm::sapa/segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py'


@pytest.mark.parametrize(
    'read',
    [
        lambda path: load_model(read_config(CONFIG), path, 'cpu'),
        lambda path: read_model(CONFIG, path, None),
    ],
    ids=['predictions', 'export'],
)
def test_a_checkpoint_that_holds_code_is_told_as_such(read, tmp_path):
    path = tmp_path / 'evil.pth'
    torch.save({'state_dict': {}, 'meta': partial(print, 'code')}, path)
    with pytest.raises(ToolError) as caught:
        read(path)
    told = str(caught.value)
    assert f'{path} is no file of weights, or holds more than weights and training logs' in told
    assert told.endswith('set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1')


@pytest.mark.parametrize('cfg', [SAPA, dict(type='nearest'), dict(type='IndexNet'), None])
def test_a_models_own_checkpoint_is_loaded(save, cfg):
    trained, model = Model(cfg), Model(cfg)
    load(model, save(trained))
    for key, value in trained.state_dict().items():
        assert model.state_dict()[key].equal(value), key


def test_other_parts_may_lack_weights(save):
    state = Model(SAPA).state_dict()
    del state['backbone.weight'], state['neck.norm.weight']
    load(Model(SAPA), save({**state, 'neck.conv.weight': torch.ones(1), 'head': torch.ones(1)}))


@pytest.mark.parametrize('strict', [False, True])
def test_a_stock_checkpoint_is_refused(save, strict):
    checkpoint = save(Model())
    with pytest.raises(ToolError) as refused:
        load(Model(SAPA), checkpoint, strict)
    sentence = str(refused.value)
    assert sentence.startswith(f'{checkpoint} has no weights for upsamplers of my.py')
    assert KEY in sentence and 'and 4 more;' in sentence  # of 2 steps of 8 keys
    assert f'sapa-mm train my.py --cfg-options load_from={checkpoint}' in sentence
    assert 'backbone' not in sentence


def test_one_missing_key_is_refused(save):
    state = Model(SAPA).state_dict()
    del state[KEY]
    with pytest.raises(ToolError, match=rf'be random: {KEY}; take a checkpoint'):
        load(Model(SAPA), save(state))


def test_what_a_norm_has_counted_is_no_weight(save):
    state = Model(dict(type='IndexNet')).state_dict()
    counted = [key for key in state if key.endswith('num_batches_tracked')]
    assert any('upsamplers' in key for key in counted)
    for key in counted:
        del state[key]
    load(Model(dict(type='IndexNet')), save(state))
    del state[counted[-1].replace('num_batches_tracked', 'running_mean')]
    with pytest.raises(ToolError, match='running_mean; take'):
        load(Model(dict(type='IndexNet')), save(state))


def test_weights_of_other_upsamplers_are_refused(save):
    others = save(Model(dict(SAPA, similarity='gated')))
    with pytest.raises(ToolError, match=r'has weights of other upsamplers than my.py: neck\.ups'):
        load(Model(SAPA), others)
    with pytest.raises(ToolError, match=r'other upsamplers .*: size mismatch for neck\.upsamplers'):
        load(Model(dict(SAPA, embed_dims=8)), save(Model(SAPA)))
    numbered = {**Model(SAPA).state_dict(), 'neck.upsample_modules.2.bias': torch.ones(1)}
    with pytest.raises(ToolError, match=r'neck\.upsample_modules\.2\.bias; .*FPN_CARAFE'):
        load(Model(SAPA), save(numbered))
    # Without upsamplers there is nothing to fit.
    load(Model(), save(numbered))


def make_runner(tmp_path, model, **options):
    (tmp_path / 'my.py').write_text('')
    cfg = Config.fromfile(tmp_path / 'my.py')
    folder = tmp_path / 'work_dir'
    name = str(tmp_path)
    return Runner(model, str(folder), cfg=cfg, experiment_name=name, log_level='ERROR', **options)


@pytest.mark.parametrize('wrap', [None, nn.DataParallel, Augmented])
def test_runners_refuse_too_whatever_wraps_the_model(save, tmp_path, wrap):
    runner = make_runner(tmp_path, Model(SAPA))
    if wrap:
        runner.model = wrap(module=runner.model)
    with upsamplers_loaded_by_runners():
        with pytest.raises(ToolError, match=rf'of .*my\.py, .*{KEY}'):
            runner.load_checkpoint(save(Model()))
        trained = Model(SAPA)
        # A checkpoint of a wrapped model.
        state = {f'module.{key}': value for key, value in trained.state_dict().items()}
        runner.load_checkpoint(save(state))
    inner = runner.model.module if wrap else runner.model
    assert inner.get_parameter(KEY).equal(trained.get_parameter(KEY))
    # Outside the block a run may start from anything.
    runner.load_checkpoint(save(Model()))


def test_checkpoints_with_averaged_weights(save, tmp_path):
    runner = make_runner(tmp_path, Model(SAPA), custom_hooks=[dict(type='EMAHook')])
    runner.call_hook('before_run')

    def averaged(model):
        state = {f'module.{key}': value for key, value in model.state_dict().items()}
        return {**state, 'steps': torch.tensor(1)}

    with upsamplers_loaded_by_runners():
        trained = Model(SAPA)
        runner.load_checkpoint(save(trained, ema_state_dict=averaged(Model(SAPA))))
        assert runner.model.get_parameter(KEY).equal(trained.get_parameter(KEY))
        with pytest.raises(ToolError, match=KEY):
            runner.load_checkpoint(save(Model(), ema_state_dict=averaged(Model())))
