"""What the tests of configs share: loading, building, one step of training, a prediction."""

import copy
import functools
from pathlib import Path
from typing import ClassVar

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

import sapa_mm  # noqa: F401  it lets mmengine find the configs that the tests load

ROOT = Path(__file__).parents[1]
SIZE = 64  # of the test images
CLASSES = (1, 3, 7)  # in their truth


@functools.cache
def load(path: Path | str) -> Config:
    """A config from a path, from below configs/, or a framework's own as 'mmseg::...'."""
    if '::' in str(path):
        return Config.fromstring(f'_base_ = {path!r}', '.py')  # marks its scopes as a config's base
    return Config.fromfile(ROOT / 'configs' / path)


@MODELS.register_module()
class BuiltOnce(nn.Module):
    """Swin-B as fixed features: to build its 87 M parameters again takes longer than the rest.

    Args:
        cfg: Config of the backbone, which all models with this config share.
    """

    built: ClassVar[dict[str, nn.Module]] = {}

    def __init__(self, cfg: dict):
        super().__init__()
        self.key = repr(cfg)
        if self.key not in self.built:
            self.built[self.key] = MODELS.build(cfg).requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.built[self.key](images)


def offline(cfg: Config) -> Config:
    """The model without its pretrained weights and without synchronized normalization."""
    cfg = copy.deepcopy(cfg)
    if 'pretrained' in cfg.model:
        cfg.model.pretrained = None
    cfg.model.backbone.init_cfg = None
    for part in ('backbone', 'neck', 'bbox_head', 'decode_head', 'auxiliary_head'):
        norm = cfg.model.get(part, {}).get('norm_cfg')
        if norm and norm.type == 'SyncBN':
            norm.type = 'BN'
    if cfg.model.backbone.type == 'SwinTransformer':
        cfg.model.backbone = dict(type='BuiltOnce', cfg=cfg.model.backbone.to_dict())
    if cfg.default_scope == 'mmdet':
        # YOLOX's asks the runner, which there is none of, for the iteration.
        cfg.model.data_preprocessor.pop('batch_augments', None)
        # Untrained scores are small, and a prediction without boxes would show little.
        test_cfg = cfg.model.test_cfg
        test_cfg.get('rcnn', test_cfg).score_thr = 0.0
        if 'rcnn' in test_cfg:
            # As many regions as an image of this size has room for.
            test_cfg.rpn.max_per_img = cfg.model.train_cfg.rpn_proposal.max_per_img = 100
            cfg.model.train_cfg.rcnn.sampler.num = 32
    return cfg


def samples(cfg: Config) -> dict:
    """Two random images with their truth, as the framework's own pipelines pack them."""
    if cfg.default_scope == 'mmdet':
        with_mask = 'mask_head' in cfg.model.get('roi_head', {})
        return demo_mm_inputs(2, (3, SIZE, SIZE), num_items=[2, 3], with_mask=with_mask)
    shape = (SIZE, SIZE)
    batch = {'inputs': [], 'data_samples': []}
    for _ in range(2):
        truth = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape))
        # One object on either side of a third.
        columns = torch.tensor(CLASSES).repeat_interleave(torch.tensor([20, 20, SIZE - 40]))
        truth.gt_sem_seg = PixelData(data=columns.expand(1, SIZE, SIZE).clone())
        # They stand so many metres away, and what is in the upper rows is unknown.
        depth = columns.expand(1, SIZE, SIZE).float().clone()
        depth[:, :8] = 0
        truth.gt_depth_map = PixelData(data=depth)
        batch['inputs'].append(torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8))
        batch['data_samples'].append(truth)
    return batch


def build(cfg: Config) -> nn.Module:
    """The model of a config that went through `offline`, for images of the test's size."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    if cfg.default_scope == 'mmseg':
        model.data_preprocessor.size = (SIZE, SIZE)
    return model


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def train_step(
    model: nn.Module, optim_wrapper: OptimWrapper, batch: dict, part: str = 'upsamplers'
) -> dict[str, Tensor]:
    """One step of the config's own optimizer moves every parameter with ``part`` in its name.

    Returns:
        What the model would log.
    """
    before = {n: p.detach().clone() for n, p in trained(model).items() if part in n}
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    loss, logged = model.parse_losses(model(**data, mode='loss'))
    assert loss > 0
    assert all(value.isfinite() for value in logged.values())
    optim_wrapper.backward(loss)
    after = trained(model)
    for name in before:
        assert after[name].grad is not None, name
        assert after[name].grad.isfinite().all(), name
        assert after[name].grad.any(), name
    optim_wrapper.step()
    for name, value in before.items():
        assert after[name].isfinite().all(), name
        assert not after[name].equal(value), name
    return logged


@torch.no_grad()
def predict(model: nn.Module, batch: dict) -> None:
    """The prediction has the image's size and is one."""
    batch = {key: values[:1] for key, values in copy.deepcopy(batch).items()}
    (result,) = model.eval().test_step(batch)
    if 'pred_depth_map' in result:
        depth = result.pred_depth_map.data
        assert depth.shape == (1, SIZE, SIZE)
        assert 0 < depth.min() < depth.max() < model.decode_head.max_depth
        return
    if 'pred_sem_seg' in result:
        assert result.pred_sem_seg.data.shape == (1, SIZE, SIZE)
        assert result.seg_logits.data.shape == (model.decode_head.num_classes, SIZE, SIZE)
        assert result.seg_logits.data.isfinite().all()
        return
    found = result.pred_instances
    assert found.bboxes.isfinite().all()
    assert found.scores.isfinite().all()
    count = model.test_cfg.get('rcnn', model.test_cfg).get('max_per_img')
    if count is None:
        # YOLOX has a box a point, at most, and does not crop it.
        assert 0 < len(found) <= sum((SIZE // stride) ** 2 for stride in (8, 16, 32))
        assert found.bboxes.min() < SIZE / 2 < found.bboxes.max()
        return
    assert len(found) == count
    assert 0 <= found.bboxes.min() < found.bboxes.max() <= SIZE
    if model.with_mask:
        assert found.masks.shape == (count, SIZE, SIZE)


def step_and_predict(cfg: Config, model: nn.Module, part: str = 'upsamplers') -> dict[str, Tensor]:
    """Train one step with the config's own optimizer, then predict; see `train_step`."""
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = samples(cfg)
    logged = train_step(model, optim_wrapper, batch, part)
    predict(model, batch)
    return logged
