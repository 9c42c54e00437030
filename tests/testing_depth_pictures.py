"""What the tests of depth's pictures share: a tiny depth estimator with upsamplers, and images."""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.runner import Runner
from mmseg.registry import MODELS
from torch import nn

from sapa_mm.depth import DepthHead

MAX_DEPTH = 8.0
STEPS = ['c4_c3', 'c3_c2', 'c2_c1']
NAMES = ('scene_00001', 'scene_00002')
HEIGHT, WIDTH = 40, 56


@MODELS.register_module()
class SigmoidDepthHead(DepthHead):
    """The largest depth times a sigmoid of one linear layer."""

    def __init__(self, **kwargs: object):
        super().__init__(**kwargs)
        self.linear = nn.Conv2d(self.in_channels, 1, 1)
        nn.init.normal_(self.linear.weight)

    def forward(self, feats):
        return self.max_depth * self.linear(self._transform_inputs(feats)).sigmoid()


@MODELS.register_module()
class AbsoluteDepthLoss(nn.Module):
    """Mean of absolute differences of known depth."""

    loss_name = 'loss_absolute'

    def forward(self, output, depth):
        return (output - depth)[depth > 0].abs().mean()


def model_config(upsample_type='SAPA') -> ConfigDict:
    """A tiny depth estimator that pads its images to multiples of 32."""
    return ConfigDict(
        type='DepthEstimator',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[120.0] * 3,
            std=[60.0] * 3,
            bgr_to_rgb=True,
            pad_val=0,
            seg_pad_val=0,
            size_divisor=32,
            test_cfg=dict(size_divisor=32),
        ),
        backbone=dict(
            type='MixVisionTransformer',
            embed_dims=8,
            num_heads=[1, 1, 1, 1],
            num_layers=[1, 1, 1, 1],
            sr_ratios=[8, 4, 2, 1],
        ),
        neck=dict(
            type='GuidedFPN',
            in_channels=[8] * 4,
            out_channels=8,
            num_outs=4,
            upsample_cfg=dict(type=upsample_type),
        ),
        decode_head=dict(
            type='SigmoidDepthHead',
            in_channels=8,
            in_index=0,
            channels=8,
            max_depth=MAX_DEPTH,
            loss_decode=dict(type='AbsoluteDepthLoss'),
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


def write_data(folder: Path) -> dict[str, np.ndarray]:
    """Write two images of 40x56 and their depth in mmseg's layout; the depth by name, in metres."""
    generator = np.random.default_rng(0)
    depths = {}
    for kind in ('images', 'annotations'):
        (folder / kind / 'test').mkdir(parents=True)
    for i, name in enumerate(NAMES):
        blocks = generator.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3)).astype(np.uint8)
        image = blocks.repeat(4, axis=0).repeat(4, axis=1)
        cv2.imwrite(str(folder / 'images' / 'test' / f'{name}.jpg'), image)
        # The second scene is farther than the first; the upper left is not known.
        depth = np.full((HEIGHT, WIDTH), 2000 + 3000 * i, np.uint16)
        depth[:, WIDTH // 2 :] += 1500
        depth[:5, :7] = 0
        cv2.imwrite(str(folder / 'annotations' / 'test' / f'{name}.png'), depth)
        depths[name] = depth.astype(np.float32) * np.float32(1e-3)
    return depths


def dataset_config(folder: Path) -> dict:
    keys = ('img_path', 'depth_map_path', 'ori_shape', 'img_shape', 'pad_shape', 'scale_factor')
    return dict(
        type='NYUDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='images/test', depth_map_path='annotations/test'),
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(2 * WIDTH, 2 * HEIGHT), keep_ratio=True),
            dict(type='LoadDepthAnnotation', depth_rescale_factor=1e-3),
            dict(type='PackSegInputs', meta_keys=keys),
        ],
    )


def make_runner(
    folder: Path, work_dir: Path, visualizer: dict, custom_hooks=(), **default_hooks: dict
) -> Runner:
    """mmengine's Runner with the test loop of the tiny model, seeded."""
    torch.manual_seed(0)
    loader = dict(
        dataset=dataset_config(folder),
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    return Runner(
        model_config(),
        str(work_dir),
        test_dataloader=loader,
        test_cfg=dict(type='TestLoop'),
        test_evaluator=dict(type='DepthMetric'),
        custom_hooks=list(custom_hooks),
        default_hooks=default_hooks,
        visualizer=dict(visualizer, vis_backends=[dict(type='LocalVisBackend')]),
        default_scope='mmseg',
        log_level='ERROR',
        experiment_name=f'depth_{work_dir.name}_{len(list(work_dir.parent.iterdir()))}',
        randomness=dict(seed=0),
    )


def config_text(folder: Path) -> str:
    """A config file with the tiny model and its test."""
    dataset = dataset_config(folder)
    pieces = dict(
        custom_imports=dict(imports=['sapa_mm', 'testing_depth_pictures']),
        default_scope='mmseg',
        model=model_config().to_dict(),
        test_pipeline=dataset['pipeline'],
        test_dataloader=dict(dataset=dataset),
        visualizer=dict(type='DepthVisualizer', max_depth=MAX_DEPTH),
    )
    return '\n'.join(f'{name} = {value!r}' for name, value in pieces.items())
