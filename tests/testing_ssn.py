"""What the tests of SSN share: models, inputs, and the network and the losses written out."""

import math

import numpy as np
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from testing_soft_slic import slic, to_dense
from torch import Tensor, nn
from torch.nn import functional as F
from upsampler_oracles import randomize

import sapa_mm.segmentation  # noqa: F401  it registers the segmentor
from sapa_mm.upsamplers import SoftClustering

#: Both sides are multiples of 4, where all agree on what "twice as large" is.
SIZE = (32, 48)
FORMS = {'SSN': None, 'HCSSN': dict()}


def build(clustering_cfg=None, number=20, seeds='pool', **test_cfg):
    """A model with the weights that a run starts with; options of its test in ``test_cfg``."""
    test_cfg = dict(numbers=(24,), iterations=4, connectivity=False) | test_cfg
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(
            dict(
                type='SSN',
                clustering_cfg=clustering_cfg,
                seeds=seeds,
                train_cfg=dict(num_superpixels=number, iterations=3),
                test_cfg=test_cfg,
            )
        )
    model.init_weights()
    return model


def build_random(*args, **kwargs):
    """The same in float64, whose network counts, with statistics of its own."""
    model = randomize(build(*args, **kwargs)).double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    model(make_images(2), make_samples(make_labels(), make_labels()), mode='loss')
    return model


def make_images(n, size=SIZE, dtype=torch.float64):
    """Lab images (n, 3, H, W) of patches of one colour, with noise."""
    colours = torch.rand(n, 3, 5, 6) * torch.tensor([80.0, 60.0, 60.0])[:, None, None]
    colours -= torch.tensor([-10.0, 30.0, 30.0])[:, None, None]
    patches = F.interpolate(colours, size, mode='nearest-exact')
    return (patches + 2 * torch.randn(n, 3, *size)).to(dtype)


def make_labels(rows=3, columns=4, size=SIZE):
    """Labels (H, W) of patches, numbered from 0 in any order."""
    numbers = torch.randperm(rows * columns).view(1, 1, rows, columns).double()
    return F.interpolate(numbers, size, mode='nearest-exact')[0, 0].long()


def make_samples(*labels, ori_shape=None):
    samples = []
    for label in labels:
        shape = tuple(label.shape)
        metainfo = dict(img_shape=shape, pad_shape=shape, ori_shape=ori_shape or shape)
        data = PixelData(data=label[None])
        samples.append(SegDataSample(metainfo=metainfo, gt_sem_seg=data))
    return samples


def losses_of(model, images, *labels):
    return model(images, make_samples(*labels), mode='loss')


def predict(model, images, ori_shape=None):
    """Superpixels (numbers, H, W) of every image."""
    labels = [torch.zeros(images.shape[2:], dtype=torch.int64)] * len(images)
    with torch.no_grad():
        samples = model.eval()(images, make_samples(*labels, ori_shape=ori_shape), mode='predict')
    return [sample.pred_superpixels.data for sample in samples]


def grid_of(number, size):
    """The integers at or below the roots."""
    height, width = size
    return math.isqrt(number * height // width), math.isqrt(number * width // height)


def positions(size):
    """Rows and columns (1, 2, H, W)."""
    return torch.stack(torch.meshgrid(*map(torch.arange, size), indexing='ij'))[None].double()


def raw_features(images, number):
    """Colour and position as they are clustered: position (1, 2, H, W), rows first."""
    size = images.shape[2:]
    scale = 2.5 * max(k / side for k, side in zip(grid_of(number, size), size, strict=True))
    return 0.26 * images, scale * positions(size)


def raw_superpixels(images, number, iterations):
    """What comes without the network, (N, H, W)."""
    colour, position = raw_features(images.double(), number)
    features = torch.cat([colour, position.expand(len(images), -1, -1, -1)], 1)
    grid = grid_of(number, images.shape[2:])
    dense = to_dense(slic(features, grid, iterations), grid)
    return dense.argmax(2).unflatten(1, images.shape[2:])


def decode(assignment, value):
    dense = to_dense(assignment.weights, assignment.size)
    return (dense @ value.flatten(2).mT).mT.unflatten(2, assignment.weights.shape[2:])


class Plain:
    """The table of layers, one call each, with the model's weights in their order.

    Which of x and y comes first is nobody's business, so it is an option.
    """

    def __init__(self, model: nn.Module, rows_first: bool = True, seeds: str = 'pool'):
        layers = list(model.modules())
        self.convs = [x for x in layers if isinstance(x, nn.Conv2d) and x.kernel_size == (3, 3)]
        self.norms = [x for x in layers if isinstance(x, nn.BatchNorm2d)]
        self.clusterings = [x for x in layers if isinstance(x, SoftClustering)]
        self.training = model.training
        self.rows_first = rows_first
        self.seeds = seeds
        self.layer = 0

    def block(self, x: Tensor) -> Tensor:
        """Two of 3x3 convolution, norm, ReLU."""
        for _ in range(2):
            conv, norm = self.convs[self.layer], self.norms[self.layer]
            x = F.conv2d(x, conv.weight, padding=1)
            if self.training:
                mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            else:
                mean, var = norm.running_mean, norm.running_var
            mean, var, weight, bias = (
                v[:, None, None] for v in (mean, var, norm.weight, norm.bias)
            )
            x = F.relu((x - mean) / (var + 1e-5).sqrt() * weight + bias)
            self.layer += 1
        return x

    def features(self, lab: Tensor, number: int) -> Tensor:
        """The 20 channels that are clustered."""
        self.layer = 0
        size = lab.shape[2:]
        colour, position = raw_features(lab, number)
        position = position if self.rows_first else position.flip(1)
        x = torch.cat([colour, position.expand(len(lab), -1, -1, -1)], 1)
        s1 = self.block(x)
        first = F.max_pool2d(s1, 3, 2, 1)
        s2 = self.block(first)
        second = F.max_pool2d(s2, 3, 2, 1)
        s3 = self.block(second)
        if self.clusterings:
            one, two = self.clusterings
            if self.seeds == 'block':
                first, second = s2, s3
            one, two = one(s1, first), two(s2, second)
            s2, s3 = decode(one, s2), decode(one, decode(two, s3))
        else:
            s2, s3 = (
                F.interpolate(s, size, mode='bilinear', align_corners=False) for s in (s2, s3)
            )
        fuse = self.convs[-1]
        out = F.conv2d(torch.cat([x, s1, s2, s3], 1), fuse.weight, fuse.bias, padding=1)
        return torch.cat([F.relu(out), x], 1)

    def associate(self, lab: Tensor, number: int, iterations: int) -> Tensor:
        """Weights of all superpixels (N, H*W, k_h*k_w)."""
        grid = grid_of(number, lab.shape[2:])
        return to_dense(slic(self.features(lab, number), grid, iterations), grid)

    def losses(self, lab: Tensor, labels: Tensor, number: int, iterations: int) -> dict:
        """Both losses, by their definitions."""
        dense = self.associate(lab, number, iterations)
        share = (dense / dense.sum(1, keepdim=True)).mT
        segments = F.one_hot(labels.flatten(1)).double()
        probability = (dense @ (share @ segments)).gather(2, labels.flatten(1)[..., None])
        place = positions(lab.shape[2:]).flatten(2).mT
        means = share @ place
        nearest = dense.argmax(2)[..., None].expand(-1, -1, 2)
        distance = (place - means.gather(1, nearest)).square().sum(2)
        return {
            'loss_reconstruction': -probability.log().mean(),
            'loss_compactness': 1e-5 * distance.mean(),
        }


def plain_of(model, images, number=24):
    """The plain network in the model's order of x and y, told from its superpixels."""
    training = model.training
    model.eval()
    candidates = [Plain(model, rows_first) for rows_first in (True, False)]
    saved, model.test_cfg = model.test_cfg, {**model.test_cfg, 'numbers': (number,)}
    found = predict(model, images)
    model.test_cfg = saved
    model.train(training)
    agreements = []
    for plain in candidates:
        with torch.no_grad():
            labels = plain.associate(images, number, model.test_cfg['iterations']).argmax(2)
        same = [agreement(x[0], y.view(x[0].shape)) for x, y in zip(found, labels, strict=True)]
        agreements.append(min(same))
    best = candidates[agreements.index(max(agreements))]
    best.training = training
    return best


def canonical(superpixels):
    """The map with its numbers in the order in which they come: equal for equal partitions."""
    _, first, places = np.unique(superpixels.numpy(), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[places].reshape(superpixels.shape)


def agreement(one, other):
    """The share of pixels where two maps are one partition, whatever the numbers."""
    pairs = torch.stack([one.flatten(), other.flatten()])
    (one, other), sizes = pairs.unique(dim=1, return_counts=True)
    shares = [
        sum(sizes[side == number].max().item() for number in side.unique()) / pairs.shape[1]
        for side in (one, other)
    ]
    return min(shares)


def relative(got, expected):
    return abs(got.item() - expected.item()) / abs(expected.item())
