"""What the tests of clustering share: tiny nets and data, and the assignments written out."""

import torch
from mmengine.structures import PixelData
from mmseg.models.backbones import ResNet, ResNetV1c, ResNetV1d
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn import functional as F

from sapa_mm.ops import reference
from sapa_mm.segmentation import ClusteredFeatures, HCResNet
from sapa_mm.upsamplers import Assignment

TINY = dict(stem_channels=8, base_channels=8, norm_cfg=dict(type='BN'))
#: Each has the stock net and the options that make ours the same.
VARIANTS = {
    'V1c': (ResNetV1c, dict()),
    'V1d': (ResNetV1d, dict(avg_down=True)),
    'plain': (ResNet, dict(deep_stem=False)),
}
BRANCHES = ('identity', 'residual', 'block')
#: A 65x97 image has these grids of strides 2 to 32.
SIZE = (65, 97)
GRIDS = ((33, 49), (17, 25), (9, 13), (5, 7), (3, 4))
#: Decode heads of 5 classes behind the tiny net of depth 18 take these, all of them and each.
COMMON = dict(
    num_classes=5,
    channels=8,
    norm_cfg=dict(type='BN'),
    loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
)
HEADS = {
    'FCNHead': dict(in_channels=64, in_index=3, num_convs=1),
    'PSPHead': dict(in_channels=64, in_index=3, pool_scales=(1, 2)),
    'ASPPHead': dict(in_channels=64, in_index=3, dilations=(1, 2)),
    # It does without c1, whose grid is of clusters at level 4 alone.
    'DepthwiseSeparableASPPHead': dict(
        in_channels=64, in_index=3, dilations=(1, 2), c1_in_channels=0, c1_channels=0
    ),
    # It fuses several levels; its logits are those of the stride 16.
    'UPerHead': dict(in_channels=[32, 64], in_index=[2, 3], pool_scales=(1, 2)),
}


def build_pair(
    depth: int = 18, variant: str = 'V1c', stock_options: dict | None = None, **options: object
) -> tuple[HCResNet, ResNet]:
    """Ours and the stock net with its weights, whose BN statistics are not those of a new one."""
    cls, same = VARIANTS[variant]
    stock_options = stock_options or {}
    stock = cls(depth=depth, **TINY, **stock_options)
    for module in stock.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.1, 0.2)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.3, 1.5)
    ours = HCResNet(depth, **TINY, **same, **stock_options, **options)
    result = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    return ours, stock


def make_images(size: tuple[int, int] = SIZE, **kwargs: object) -> Tensor:
    return torch.randn(2, 3, *size, **kwargs)


def make_features(levels: int, size: tuple[int, int] = SIZE) -> ClusteredFeatures:
    """What a backbone gives for two images, without its graph."""
    net = HCResNet(18, levels, **TINY)
    net.eval()  # it gives nothing back, as in the stock net
    with torch.no_grad():
        return net(make_images(size))


def make_samples() -> list[SegDataSample]:
    """Labels of two images, 5 classes and a strip to ignore."""
    labels = torch.randint(0, 5, (2, 1, *SIZE))
    labels[:, :, :3] = 255
    metainfo = dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE)
    return [SegDataSample(metainfo=metainfo, gt_sem_seg=PixelData(data=label)) for label in labels]


def run_stock(stock: ResNet, images: Tensor) -> list[dict[str, Tensor]]:
    """For each stage the points, and what each branch of its first block gives."""
    stages = [{} for _ in range(4)]

    def keep(i: int, name: str, *, before: bool = False) -> object:
        def hook(_, args: tuple[Tensor], out: Tensor | None = None) -> None:
            # It is a copy, as the block adds to its residual in place.
            stages[i][name] = (args[0] if before else out).clone()

        return hook

    stock.maxpool.register_forward_pre_hook(keep(0, 'points', before=True))
    for i, name in enumerate(stock.res_layers):
        stage = getattr(stock, name)
        block = stage[0]
        if i:
            stage.register_forward_pre_hook(keep(i, 'points', before=True))
        if block.downsample is None:
            block.register_forward_pre_hook(keep(i, 'identity', before=True))
        else:
            block.downsample.register_forward_hook(keep(i, 'identity'))
        last = block.norm3 if hasattr(block, 'conv3') else block.norm2
        if getattr(block, 'with_plugins', False):
            last = getattr(block, block.after_conv3_plugin_names[-1])
        last.register_forward_hook(keep(i, 'residual'))
        block.register_forward_hook(keep(i, 'block'))
    stock(images)
    return stages


def projections(clustering: nn.Module) -> tuple[Tensor, Tensor]:
    """Wq and Wk."""
    named = dict(clustering.named_parameters())
    assert len(named) == 2  # no biases
    (query,) = [p for name, p in named.items() if 'query' in name]
    (key,) = [p for name, p in named.items() if 'key' in name]
    return query, key


def expected_weights(
    clustering: nn.Module,
    points: Tensor,
    clusters: Tensor,
    kernel_size: int = 3,
    normalize: bool = True,
    temperature: float = 0.07,
    border: str = 'zero',
) -> Tensor:
    """The weights of an assignment, written out."""
    embedded = [
        F.conv2d(x, weight.reshape(weight.shape[0], weight.shape[1], 1, 1))
        for x, weight in zip((points, clusters), projections(clustering), strict=True)
    ]
    if normalize:
        embedded = [F.normalize(x, dim=1) for x in embedded]
    query, key = embedded
    scores = reference.local_similarity(query, key, kernel_size=kernel_size) / temperature
    if border == 'mask':
        ones = [torch.ones_like(x[:, :1]) for x in (query, key)]
        inside = reference.local_similarity(*ones, kernel_size=kernel_size) > 0
        scores = scores.masked_fill(~inside, -torch.inf)
    return scores.softmax(dim=1)


def check_assignments(
    ours: HCResNet,
    stages: list[dict[str, Tensor]],
    assignments: tuple[Assignment, ...],
    branch: str,
    **options: object,
) -> None:
    """Hold all assignments to what the stages' points and clusters give."""
    modules = list(ours.clusterings.children())
    stages = stages[len(stages) - len(assignments) :]
    for module, stage, assignment in zip(modules, stages, assignments, strict=True):
        expected = expected_weights(module, stage['points'], stage[branch], **options)
        torch.testing.assert_close(assignment.weights, expected, rtol=1e-8, atol=1e-10)
        for other in set(BRANCHES) - {branch}:
            wrong = expected_weights(module, stage['points'], stage[other], **options)
            assert (wrong - expected).abs().max() > 1e-3


def assert_all_get_a_gradient(net: nn.Module) -> None:
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name
