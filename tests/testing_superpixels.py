"""A tiny segmentor that predicts as many superpixels as it is asked for, with its files."""

import numpy as np
import torch
from mmengine.runner import save_checkpoint
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS
from skimage.color import rgb2lab

CONFIG = """
default_scope = 'mmseg'
model = dict(
    type='StripeSegmentor',
    data_preprocessor=dict(type='SegDataPreProcessor'),
    test_cfg=dict(numbers=(1,)),
)
test_dataloader = dict(
    dataset=dict(
        type='BSDS500Dataset',
        data_root={data_root!r},
        data_prefix=dict(img_path='images/test', seg_map_path='groundTruth/test'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadBSDSAnnotations', annotator='all'),
            dict(type='ConvertToLab'),
            dict(type='PackSegInputs', meta_keys=('img_path', 'ori_shape', 'annotations')),
        ],
    )
)
"""


@MODELS.register_module()
class StripeSegmentor(BaseSegmentor):
    """Superpixels are vertical stripes, each cut in two at a lightness that is its weight."""

    # The function of mmseg that loads models passes train_cfg and pretrained to all of them.
    def __init__(self, data_preprocessor=None, train_cfg=None, test_cfg=None, pretrained=None):
        super().__init__(data_preprocessor)
        self.numbers = test_cfg['numbers']
        self.lightness = torch.nn.Parameter(torch.zeros(()))

    def predict(self, inputs, data_samples):
        lights = inputs[:, 0] > self.lightness
        columns = torch.arange(inputs.shape[3])
        for sample, light in zip(data_samples, lights, strict=True):
            levels = [columns * n // len(columns) * 2 + light for n in self.numbers]
            sample.pred_superpixels = PixelData(
                data=torch.stack(levels), metainfo=dict(numbers=tuple(self.numbers))
            )
        return data_samples

    def extract_feat(self, inputs):
        raise NotImplementedError

    encode_decode = loss = _forward = extract_feat


def stripes(image, number, lightness):
    """What a `StripeSegmentor` finds in an image (H, W, 3), uint8, RGB."""
    light = rgb2lab(image / 255.0)[..., 0] > lightness
    return np.arange(image.shape[1]) * number // image.shape[1] * 2 + light


def write_stripe_model(folder, data_root, lightness):
    """Write the config and the checkpoint; return their paths."""
    config, checkpoint = folder / f'stripes_{lightness}.py', folder / f'stripes_{lightness}.pth'
    config.write_text(CONFIG.format(data_root=str(data_root)))
    model = StripeSegmentor(test_cfg=dict(numbers=(1,)))
    model.lightness.data.fill_(lightness)
    meta = dict(dataset_meta=dict(classes=('segment',), palette=[[9, 9, 9]]))
    save_checkpoint(dict(meta=meta, state_dict=model.state_dict()), str(checkpoint))
    return config, checkpoint


@MODELS.register_module()
class StubbornSegmentor(StripeSegmentor):
    """It predicts three superpixels, whatever it is asked for."""

    def predict(self, inputs, data_samples):
        self.numbers = (3,)
        return super().predict(inputs, data_samples)


@MODELS.register_module()
class SilentSegmentor(StripeSegmentor):
    """It predicts no superpixels."""

    def predict(self, inputs, data_samples):
        return data_samples
