"""What the tests of matting share: a plain rewriting of the network, small networks, samples."""

from types import SimpleNamespace

import a2u_oracle
import torch
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor, nn
from torch.nn import functional as F
from upsampler_oracles import blocks as blocks_of_pixels
from upsampler_oracles import pad_to_even, randomize, shuffle, to_parent_grid

from sapa_mm.matting import GuidedMattingNet

STEPS = ('c5_c4', 'c4_c3', 'c3_c2', 'c2_c1')
BILINEAR = dict(type='bilinear')
INDEX_NET = dict(type='IndexNet')
A2U = dict(type='A2U')
PAIRED_A2U = dict(type='A2U', paired=True)
SAPA = dict(type='SAPA', embed_dims=4)

MAX_POOL = dict(type='max_pool')
CONV = dict(type='conv')
PAIRED = dict(type='paired')

CHANNELS = (8, 12, 16)
BLOCKS = (1, 2, 2)


def build_small(upsample_cfg: dict = BILINEAR, downsample_cfg: dict = MAX_POOL, **options):
    """A network of little width whose dropout is off, all of its layers of about unit size."""
    options.setdefault('backbone', dict(type='MattingResNet', channels=CHANNELS, blocks=BLOCKS))
    net = GuidedMattingNet(upsample_cfg, downsample_cfg=downsample_cfg, **options)
    return randomize_all(net)


def randomize_all(net: nn.Module) -> nn.Module:
    """Random parameters and running statistics; dropout drops nothing."""
    randomize(net)
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.weight.data.uniform_(0.7, 1.3)
            layer.bias.data.normal_(std=0.3)
            layer.running_mean.normal_(std=0.3)
            layer.running_var.uniform_(0.5, 1.5)
        elif isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return net


def make_inputs(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What the data preprocessor gives: images of unit deviation and trimaps of 0, 128, 255."""
    n, h, w = shape
    trimap = torch.tensor([0.0, 128.0, 255.0])[torch.randint(3, (n, 1, h, w))] / 255
    return torch.cat([torch.randn(n, 3, h, w), trimap], 1).to(dtype)


def build_contrasting(*args, **options):
    """A network whose alpha leaves [0, 1] on either side, and is often within."""
    net = build_small(*args, **options).eval()
    norm, last = net.head[0][1], net.head[1]
    seen = []
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        net(make_inputs(2, 64, 48))
        norm.running_mean.fill_(seen[0].mean())
        norm.running_var.fill_(seen[0].var())
        norm.weight.fill_(1.0)
        norm.bias.fill_(1.0)
        # Together .5, so that this is about the mean.
        kernel = [[0.1, -0.2, 0.1], [-0.2, 0.8, -0.2], [0.2, -0.2, 0.1]]
        last.weight.copy_(torch.tensor(kernel))
    handle.remove()
    return net


def make_sample(trimap: Tensor, training: bool = False) -> BaseDataElement:
    """A sample of the trimap (1, H, W), 0, 128, 255, with random truth if it is to train on."""
    size = tuple(trimap.shape[-2:])
    sample = BaseDataElement(metainfo=dict(img_path='a.png', ori_shape=size, img_shape=size))
    sample.trimap = PixelData(data=trimap.to(torch.uint8))
    if training:
        sample.gt_alpha = PixelData(data=torch.rand(1, *size))
        sample.gt_fg = PixelData(data=255 * torch.rand(3, *size))
        sample.gt_bg = PixelData(data=255 * torch.rand(3, *size))
    return sample


def samples_of(inputs: Tensor, training: bool = False) -> list[BaseDataElement]:
    """The samples whose trimaps are the fourth channel."""
    return [make_sample((255 * trimap).round()[None], training) for trimap in inputs[:, 3]]


class Plain:
    """The network from its description, with `torch.nn.functional` on the state dict alone.

    Running statistics are updated in ``state``, and the guides are kept in ``guides``.

    Args:
        state: The state dict, its tensors in the dtype of the computation.
        upsample_cfg: Bilinear, A2U of the default options, or the holistic IndexNet.
        downsample: ``'max_pool'``, ``'conv'`` or ``'paired'``.
        training: Whether batches are normalized by their own statistics.
    """

    def __init__(
        self, state: dict[str, Tensor], upsample_cfg: dict, downsample: str, training: bool
    ):
        self.state = state
        self.kind = upsample_cfg['type']
        self.downsample = downsample
        self.training = training
        self.guides: dict[str, Tensor] = {}

    def conv(self, name: str, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = self.state[f'{name}.weight']
        assert f'{name}.bias' not in self.state
        padding = dilation * (weight.shape[-1] // 2)
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)

    def norm(self, name: str, x: Tensor, training: bool | None = None) -> Tensor:
        mean, var = self.state[f'{name}.running_mean'], self.state[f'{name}.running_var']
        weight, bias = self.state[f'{name}.weight'], self.state[f'{name}.bias']
        training = self.training if training is None else training
        return F.batch_norm(x, mean, var, weight, bias, training, 0.1, 1e-5)

    def layer(self, conv: str, norm: str, x: Tensor, dilation: int = 1, **options) -> Tensor:
        x = self.norm(norm, self.conv(conv, x, dilation=dilation), **options)
        return F.leaky_relu(x, 0.01)

    def block(self, name: str, x: Tensor) -> Tensor:
        out = self.layer(f'{name}.conv1', f'{name}.bn1', x)
        out = self.norm(f'{name}.bn2', self.conv(f'{name}.conv2', out))
        if f'{name}.downsample.0.weight' in self.state:
            x = self.norm(f'{name}.downsample.1', self.conv(f'{name}.downsample.0', x))
        return F.leaky_relu(out + x, 0.01)

    def blocks(self, name: str, x: Tensor, first: int = 0) -> Tensor:
        index = first
        while f'{name}.{index}.conv1.weight' in self.state:
            x = self.block(f'{name}.{index}', x)
            index += 1
        return x

    def of_step(self, step: str) -> dict[str, Tensor]:
        prefix = f'upsamplers.{step}.'
        return {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}

    def logits(self, step: str, guide: Tensor) -> Tensor:
        """IndexNet's, of every pixel of a 2 x 2 block: (N, 4, h, w)."""
        name = f'upsamplers.{step}.encoders.0'
        weight = self.state[f'{name}.0.weight']
        z = F.conv2d(pad_to_even(guide), weight, stride=2, padding=1)
        z = self.norm(f'{name}.1', z).clamp(0, 6)
        return F.conv2d(z, self.state[f'{name}.3.weight'])

    def a2u(self) -> SimpleNamespace:
        return SimpleNamespace(
            form=('dynamic', False, False),
            encoder_kernel=5,
            kernel_size=3,
            normalization='sigmoid_softmax',
        )

    def halve(self, step: str, guide: Tensor) -> Tensor:
        self.guides[step] = guide
        if self.downsample == 'max_pool':
            return F.max_pool2d(guide, 2, ceil_mode=True)
        if self.kind == 'A2U':
            return a2u_oracle.downsample(self.of_step(step), guide, self.a2u())
        self.encodings[step] = self.logits(step, guide)  # once, as it moves running statistics
        weights = self.encodings[step].sigmoid().softmax(1)[:, None]
        return (weights * blocks_of_pixels(pad_to_even(guide))).sum(2)

    def upsample(self, step: str, x: Tensor, guide: Tensor) -> Tensor:
        size = guide.shape[2:]
        if self.kind == 'bilinear':
            return F.interpolate(x, size, mode='bilinear', align_corners=False)
        if self.kind == 'A2U':
            return a2u_oracle.upsample(self.of_step(step), x, guide, self.a2u())
        index = shuffle(self.encodings[step].sigmoid(), 2)[:, :, : size[0], : size[1]]
        return index * to_parent_grid(x, size)

    def stage(self, name: str, x: Tensor, step: str) -> Tensor:
        """A stage whose first block halves after its first convolution."""
        first = f'{name}.0'
        if self.downsample == 'conv':
            out = self.conv(f'{first}.conv1', x, stride=2)
            out = F.leaky_relu(self.norm(f'{first}.bn1', out), 0.01)
        else:
            out = self.halve(step, self.layer(f'{first}.conv1', f'{first}.bn1', x))
        out = self.norm(f'{first}.bn2', self.conv(f'{first}.conv2', out))
        shortcut = self.conv(f'{first}.downsample.0', x, stride=2)
        shortcut = self.norm(f'{first}.downsample.1', shortcut)
        return self.blocks(name, F.leaky_relu(out + shortcut, 0.01), first=1)

    def encode(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What the skip connections of the steps get, and the last feature."""
        strided = self.downsample == 'conv'
        e0 = self.conv('backbone.conv1', x, stride=2 if strided else 1)
        e0 = F.leaky_relu(self.norm('backbone.bn1', e0), 0.01)
        if strided:
            e1, pooled = e0, F.max_pool2d(e0, 3, 2, 1)
        else:
            e1 = self.halve('c2_c1', e0)
            pooled = self.halve('c3_c2', e1)
        l1 = self.blocks('backbone.layer1', pooled)
        l2 = self.stage('backbone.layer2', l1, 'c4_c3')
        l3 = self.stage('backbone.layer3', l2, 'c5_c4')
        return {'c5_c4': l2, 'c4_c3': l1, 'c3_c2': e1, 'c2_c1': x}, l3

    def aspp(self, x: Tensor) -> Tensor:
        parts = [self.layer('aspp.point.0', 'aspp.point.1', x)]
        for i, dilation in enumerate((6, 12, 18)):
            name = f'aspp.dilated.{i}'
            part = self.layer(f'{name}.0.0', f'{name}.0.1', x, dilation)
            parts.append(self.layer(f'{name}.1.0', f'{name}.1.1', part))
        mean = x.mean((2, 3), keepdim=True)
        # A batch of one has no variance.
        training = self.training and len(x) > 1
        mean = self.layer('aspp.pooled.0', 'aspp.pooled.1', mean, training=training)
        parts.append(mean.expand_as(parts[0]))
        return self.layer('aspp.join.0', 'aspp.join.1', torch.cat(parts, 1))

    def __call__(self, x: Tensor) -> Tensor:
        self.encodings: dict[str, Tensor] = {}
        skips, x = self.encode(x)
        x = self.aspp(x)
        for step in STEPS:
            skip = self.layer(f'skips.{step}.0', f'skips.{step}.1', skips[step])
            if self.downsample == 'conv':
                self.guides[step] = skip
            x = self.upsample(step, x, self.guides[step]) + skip
            x = self.blocks(f'blocks.{step}', x)
        return self.conv('head.1', self.layer('head.0.0', 'head.0.1', x))


def plain_of(net: GuidedMattingNet, upsample_cfg: dict, downsample_cfg: dict) -> Plain:
    """The rewriting with the network's parameters and statistics, as float64 leaves."""
    state = {name: t.detach().double().clone() for name, t in net.state_dict().items()}
    for name, _ in net.named_parameters():
        state[name].requires_grad_()
    return Plain(state, upsample_cfg, downsample_cfg['type'], net.training)
