"""Half precision: mmengine's Runner trains real models under autocast, in both memory formats.

mmengine's AmpOptimWrapper refuses CPUs, so that there its autocast alone is put around each step.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mmdet.models import FasterRCNN
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from mmengine.runner import Runner, autocast
from testing_configs import build, load, offline, samples
from torch import Tensor, nn

import sapa_mm.segmentation
from sapa_mm.upsamplers import Upsampler

ITERATIONS = 3
# Runs are on the GPU wherever there is one: mmengine knows no other choice.
DTYPES = ['bfloat16']
if torch.cuda.is_available():
    DTYPES = [pytest.param(name, marks=pytest.mark.gpu) for name in ('float16', 'bfloat16')]

SEGFORMER = 'sapa/segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py'
HC = 'hc/hcfcn-32-tiny_r18-l3_1xb8-600_toy-160x160.py'
DETECTOR = 'sapa/faster-rcnn_r18_fpn_sapa-b_1xb2-100_toy-160x160.py'
UPSAMPLERS = {
    'sapa-i': dict(type='SAPA', similarity='inner'),
    'sapa-b': dict(type='SAPA', similarity='bilinear'),
    'sapa-g': dict(type='SAPA', similarity='gated'),
    'carafe': dict(type='CARAFE'),
    'index_net': dict(type='IndexNet'),
    'a2u': dict(type='A2U'),
    'dysample-plus': dict(type='DySample', dynamic_scope=True),
    'fade': dict(type='FADE'),
    'soft-clustering': dict(type='SoftClusteringUpsampler'),
}


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Around a step what mmengine's AmpOptimWrapper puts there, on the CPU, which it refuses."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), autocast('cpu', torch.bfloat16):
            yield


@MODELS.register_module()
class HalfFeaturesFasterRCNN(FasterRCNN):
    """Faster R-CNN with bfloat16 in its backbone and neck alone.

    mmcv 2.1 has no RoIAlign in bfloat16, and on the CPU no NMS, whatever the neck.
    """

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(batch_inputs.device.type, torch.bfloat16):
            features = super().extract_feat(batch_inputs)
        assert all(feature.dtype == torch.bfloat16 for feature in features)
        return tuple(feature.float() for feature in features)


class Recorder(Hook):
    """Keeps what happens in a run."""

    def __init__(self):
        self.losses = []
        self.dtypes = set()  # of what upsamplers and clustering backbones return
        self.channels_last = []  # whether what upsamplers get is
        self.gradients = {}  # by parameter, whether all of its gradients were finite
        self.moving = set()  # parameters whose gradient was not zero
        self.trainable = set()  # all that want one

    def before_train(self, runner: Runner) -> None:
        for name, parameter in runner.model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(
                    functools.partial(self.see_gradient, name)
                )
        for module in runner.model.modules():
            if isinstance(module, (Upsampler, sapa_mm.segmentation.HCResNet)):
                module.register_forward_hook(self.see_features)
        self.trainable = {n for n, p in runner.model.named_parameters() if p.requires_grad}

    def see_gradient(self, name: str, parameter: nn.Parameter) -> None:
        finite = bool(parameter.grad.isfinite().all())
        self.gradients[name] = self.gradients.get(name, True) and finite
        if parameter.grad.any():
            self.moving.add(name)

    def see_features(self, module: nn.Module, args: tuple, out: Tensor | tuple) -> None:
        outs = [out] if isinstance(out, Tensor) else list(out)
        self.dtypes |= {tensor.dtype for tensor in outs}
        self.channels_last.append(args[0].is_contiguous(memory_format=torch.channels_last))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: dict
    ) -> None:
        self.losses.append(outputs['loss'].item())


def config(name: str, data: Path) -> Config:
    """A tiny config, on all four toy images of 64 pixels in every batch.

    Args:
        name: One of UPSAMPLERS, in SegFormer, 'hc' or 'faster-rcnn'.
        data: The toy data.
    """
    cfg = copy.deepcopy(load({'hc': HC, 'faster-rcnn': DETECTOR}.get(name, SEGFORMER)))
    if name in UPSAMPLERS:
        cfg.model.decode_head.upsample_cfg = UPSAMPLERS[name]
    folder = 'coco' if cfg.default_scope == 'mmdet' else 'ade'
    cfg.train_dataloader.dataset.data_root = f'{data / folder}/'
    cfg.train_dataloader.batch_size = 4
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 64)
    return cfg


def train(
    cfg: Config, work_dir: Path, dtype: str | None = None, custom_hooks: list | None = None
) -> Recorder:
    """Train a few iterations.

    Args:
        cfg: From `config`.
        work_dir: For the log; its name is that of no other run.
        dtype: 'float16' or 'bfloat16'. Default: None, no autocast.
        custom_hooks: For the Runner. Default: None.
    """
    cfg = copy.deepcopy(cfg)
    if dtype == 'bfloat16' and cfg.model.type == 'FasterRCNN':
        cfg.model.type = 'HalfFeaturesFasterRCNN'
    elif dtype and torch.cuda.is_available():
        # The usual first scale is meant to overflow for some steps.
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=dtype, loss_scale=512.0)
    elif dtype:
        cfg.optim_wrapper.type = 'CPUAmpOptimWrapper'
    runner = Runner(
        cfg.model,
        str(work_dir),
        train_dataloader=cfg.train_dataloader,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=ITERATIONS),
        optim_wrapper=cfg.optim_wrapper,
        default_hooks=dict(checkpoint=None),
        custom_hooks=custom_hooks,
        default_scope=cfg.default_scope,
        randomness=dict(seed=0),
        log_level='ERROR',
        experiment_name=work_dir.name,
    )
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()
    return recorder


@pytest.fixture(scope='module')
def single(toy_data, tmp_path_factory) -> Callable[[str], Recorder]:
    """A function from a name to its run in single precision, which takes place once."""
    return functools.cache(
        lambda name: train(config(name, toy_data), tmp_path_factory.mktemp(f'single-{name}'))
    )


def check_run(name: str, run: Recorder, single: Recorder, dtype: str) -> None:
    """A run in half precision goes as the one in single precision does."""
    assert single.dtypes == {torch.float32}
    assert run.dtypes == {getattr(torch, dtype)}
    # A detector also draws its samples among proposals, which rounding reorders.
    rtol = 0.05 if name == 'faster-rcnn' else 0.005
    assert run.losses == pytest.approx(single.losses, rel=rtol)
    assert len(run.losses) == ITERATIONS
    assert run.losses == sorted(run.losses, reverse=True)
    assert run.gradients == dict.fromkeys(run.trainable, True)
    assert run.moving == run.trainable


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', [*UPSAMPLERS, 'hc', 'faster-rcnn'])
def test_half_precision_trains_as_single_precision_does(name, dtype, single, toy_data, tmp_path):
    check_run(name, train(config(name, toy_data), tmp_path, dtype), single(name), dtype)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', ['sapa-g', 'hc', 'faster-rcnn'])
def test_channels_last_trains_likewise(name, dtype, single, toy_data, tmp_path):
    hooks = [dict(type='ChannelsLastHook')]
    run = train(config(name, toy_data), tmp_path, dtype, hooks)
    check_run(name, run, single(name), dtype)
    assert all(run.channels_last)
    # SegFormer's tokens lie like this anyway.
    assert any(single(name).channels_last) == (name == 'sapa-g')


# Rows of the table in tools/README.md
CPU_NMS = 'expected scalar type Float but found'
WHOLE_MODELS = {
    'sapa/segformer_mit-b1_sapa-g_8xb2-160k_ade20k-512x512.py': None,
    'sapa/fpn_r50_sapa-b_4xb4-160k_ade20k-512x512.py': None,
    'hc/hcfcn-32_r18-l3_8xb2-50k_cityscapes-1024x1024.py': None,
    'bts/bts_r50_sapa-b_1xb4-50e_nyu-416x544.py': None,
    'sapa/maskformer_swin-b_sapa-b_8xb2-160k_ade20k-640x640.py': None,
    'sapa/mask2former_swin-b-in22k-384x384-pre_sapa-b_8xb2-160k_ade20k-640x640.py': None,
    'sapa/retinanet_r50_fpn_sapa-b_1x_coco.py': None,
    'sapa/yolox_s_sapa-b_8xb8-300e_coco.py': None,
    'sapa/rtmdet_s_sapa-b_8xb32-300e_coco.py': None,
    # mmcv's NMS is in float32 alone on a CPU.
    'sapa/faster-rcnn_r50_fpn_sapa-b_1x_coco.py': CPU_NMS,
    'sapa/mask-rcnn_r50_fpn_sapa-b_1x_coco.py': CPU_NMS,
}
# torch 2.13's bfloat16 convolution on CPUs leaves parts of this gradient uninitialized where the
# feature is a single pixel, as RetinaNet's coarsest one is here.
SINGLE_PIXEL = 'neck.fpn_convs.4.conv.weight'


@pytest.mark.parametrize(
    'name',
    # Swin-B, of 87 M parameters, takes its time.
    [pytest.param(n, marks=[pytest.mark.slow] if 'swin' in n else []) for n in WHOLE_MODELS],
)
def test_whole_models_have_finite_gradients_in_half_precision(name):
    cfg = offline(load(name))
    model = build(cfg).train()
    batch = samples(cfg)
    for dtype in (torch.bfloat16, torch.float16):
        model.zero_grad()
        data = model.data_preprocessor(copy.deepcopy(batch), training=True)
        # mmengine's own autocast on CPUs is the same, and knows bfloat16 alone.
        with torch.autocast('cpu', dtype):
            if WHOLE_MODELS[name]:
                with pytest.raises(RuntimeError, match=WHOLE_MODELS[name]):
                    model(**data, mode='loss')
                continue
            loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        broken = {n for n, gradient in gradients.items() if not gradient.isfinite().all()}
        faulty = 'retinanet' in name and dtype == torch.bfloat16
        assert broken <= ({SINGLE_PIXEL} if faulty else set())
        assert sum('upsamplers' in n for n in gradients) == sum(
            'upsamplers' in n and p.requires_grad for n, p in model.named_parameters()
        )
