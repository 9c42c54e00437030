"""What the tests of hosts share: features, comparison with the parent, tiny MaskFormers."""

from collections.abc import Sequence

import numpy as np
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

#: Features of a 97x65 image at strides 4, 8, 16 and 32, and ones that halve exactly.
ODD_SIZES = ((25, 17), (13, 9), (7, 5), (4, 3))
EVEN_SIZES = ((32, 24), (16, 12), (8, 6), (4, 3))


def make_features(channels: Sequence[int], sizes: Sequence[tuple[int, int]] = ODD_SIZES) -> list:
    """One feature (2, C_i, H_i, W_i) a level."""
    return [torch.randn(2, c, *size) for c, size in zip(channels, sizes, strict=True)]


def load_parent(ours: nn.Module, parent: nn.Module) -> list[str]:
    """Give ``ours`` the weights of its parent; returns the keys that the parent does not have."""
    result = ours.load_state_dict(parent.state_dict(), strict=False)
    assert not result.unexpected_keys
    names = [key.removeprefix('pixel_decoder.') for key in result.missing_keys]
    assert all(name.startswith('upsamplers.c') for name in names)
    return result.missing_keys


def assert_same_bits(actual: object, expected: object) -> None:
    """Compare tensors, and tuples and lists of them, to the bit."""
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected)
    else:
        assert type(actual) is type(expected)
        for a, b in zip(actual, expected, strict=True):
            assert_same_bits(a, b)


def assert_gradients(upsamplers: nn.Module, *outs: Tensor) -> None:
    """Every parameter of ``upsamplers``, at least one, gets a gradient from ``outs``."""
    sum(out.square().sum() for out in outs).backward()
    grads = [p.grad for p in upsamplers.parameters()]
    assert grads
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)


def _shrink(node: object) -> object:
    """A config with a 16th of the channels, and fewer of all else that costs time."""
    counts = dict(num_layers=1, num_groups=4, num_queries=5)
    if isinstance(node, dict):
        return {key: counts.get(key, _shrink(value)) for key, value in node.items()}
    if isinstance(node, list):
        return [_shrink(value) for value in node]
    return node // 16 if isinstance(node, int) and node >= 128 else node


def _tiny_head(framework: str, config: str) -> dict:
    """The config of the (Mask2)MaskFormer head of a published config, tiny, with 3 classes."""
    model = get_config(f'{framework}::{config}.py').model
    if framework == 'mmseg':
        head = dict(_shrink(model.decode_head.to_dict()), num_classes=3)
    else:
        head = _shrink(model.panoptic_head.to_dict())
        head |= dict(num_things_classes=2, num_stuff_classes=1)
        head |= dict(train_cfg=_shrink(model.train_cfg.to_dict()))
    head['loss_cls']['class_weight'] = [1.0] * 3 + [0.1]
    return head


def _losses(framework: str, head: nn.Module, feats: list[Tensor]) -> dict[str, Tensor]:
    """The losses of two images of 97x65 pixels: class 0 left, class 1 right."""
    shape = (97, 65)
    meta = dict(img_shape=shape, batch_input_shape=shape, ori_shape=shape)
    mask = torch.zeros(shape, dtype=torch.long)
    mask[:, 32:] = 1
    if framework == 'mmseg':
        sample = SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=mask[None]))
        return head.loss(tuple(feats), [sample.clone(), sample.clone()], None)
    masks = BitmapMasks(np.stack([mask == 0, mask == 1]).astype(np.uint8), *shape)
    instances = InstanceData(labels=torch.tensor([0, 1]), masks=masks)
    sample = DetDataSample(metainfo=meta, gt_instances=instances)
    return head.loss(tuple(feats), [sample.clone(), sample.clone()])


def _prediction(framework: str, head: nn.Module, feats: list[Tensor]) -> Tensor:
    """The prediction (2, 3 classes or 5 queries, 97, 65)."""
    meta = dict(img_shape=(97, 65), batch_input_shape=(97, 65), ori_shape=(97, 65))
    head.eval()
    with torch.no_grad():
        if framework == 'mmseg':
            return head.predict(tuple(feats), [dict(meta), dict(meta)], None)
        samples = [DetDataSample(metainfo=meta) for _ in range(2)]
        return head.predict(tuple(feats), samples)[1]


def check_published_head(
    framework: str, config: str, name: str, *, same_as_parent: str, added: int
) -> None:
    """Hold a published head with a guided pixel decoder to the one with the parent's.

    Args:
        framework: 'mmseg' or 'mmdet'.
        config: Path of its config, without the framework and '.py'.
        name: Type of the guided decoder.
        same_as_parent: Type of upsampler with which it must predict the same bits.
        added: Number of parameter tensors that SAPA adds.
    """
    config = _tiny_head(framework, config)
    feats = make_features(config['in_channels'])

    def build(**pixel_decoder: object) -> nn.Module:
        head = ConfigDict(config, pixel_decoder={**config['pixel_decoder'], **pixel_decoder})
        registry = MMSEG_MODELS if framework == 'mmseg' else MMDET_MODELS
        with DefaultScope.overwrite_default_scope(framework):
            return registry.build(head)

    stock, same = build(), build(type=name, upsample_cfg=dict(type=same_as_parent))
    assert load_parent(same, stock) == []
    expected = _prediction(framework, stock, feats)
    assert expected.shape[2:] == (97, 65)
    assert_same_bits(_prediction(framework, same, feats), expected)

    guided = build(type=name, upsample_cfg=dict(type='SAPA'))
    assert len(load_parent(guided, stock)) == added
    losses = _losses(framework, guided, feats)
    assert {'loss_cls', 'loss_mask', 'loss_dice'} <= losses.keys()
    assert all(loss.isfinite() for loss in losses.values())
    assert_gradients(guided.pixel_decoder.upsamplers, *losses.values())
    got = _prediction(framework, guided, feats)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() > 1e-4
