"""DORN's head: its size, its layers, what clusters decode, and the sizes that it refuses."""

import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.models.backbones import ResNetV1c
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from sapa_mm.depth import DORNHead, OrdinalRegressionLoss
from sapa_mm.segmentation import HCResNet

NARROW = dict(stem_channels=16, base_channels=8)


def make_head(**options: object) -> DORNHead:
    torch.manual_seed(0)
    head = DORNHead(
        64, **{'feature_size': (5, 6), 'pool_size': 2, 'channels': 8, 'num_bins': 10, **options}
    )
    head.init_weights()
    return head


def written_out(head: DORNHead, x: Tensor) -> Tensor:
    """The head without dropout, from its weights, layer by layer, up to chi."""
    state = head.state_dict()

    def conv(name: str, x: Tensor, dilation: int = 1) -> Tensor:
        weight, bias = state[f'{name}.weight'], state[f'{name}.bias']
        padding = dilation * (weight.shape[2] // 2)
        return F.conv2d(x, weight, bias, padding=padding, dilation=dilation).relu()

    n, _, h, w = x.shape
    # Windows of 2, of which the last in a row of 5 is cut.
    rows, columns = ([slice(i, min(i + 2, side)) for i in range(0, side, 2)] for side in (h, w))
    pooled = torch.stack(
        [torch.stack([x[..., r, k].mean((2, 3)) for k in columns], -1) for r in rows], -2
    )
    whole = F.linear(pooled.flatten(1), state['full_image.3.weight'], state['full_image.3.bias'])
    whole = conv('full_image.6.0', whole.relu()[..., None, None]).expand(n, -1, h, w)
    outs = [whole]
    for i, dilation in enumerate((1, 4, 8, 12)):
        outs.append(conv(f'branches.{i}.1.0', conv(f'branches.{i}.0.0', x, dilation)))
    return conv('fusion.1.0', torch.cat(outs, 1))


def classified(head: DORNHead, chi: Tensor) -> Tensor:
    scores = head.classifier[1](chi)
    size = [(side - 1) * 8 + 1 for side in chi.shape[2:]]
    return F.interpolate(scores, size, mode='bilinear', align_corners=True)


def test_parameters_are_the_papers():
    head = DORNHead(2048, feature_size=(33, 45))
    assert sum(p.numel() for p in head.parameters()) == 67_656_840
    assert head.full_image[3].in_features == 61_440
    # The same for HCDORN, whose feature and pooling are a quarter as large.
    clustered = DORNHead(2048, feature_size=(9, 12), pool_size=2)
    assert sum(p.numel() for p in clustered.parameters()) == 67_656_840


def test_it_is_the_layers_of_the_paper():
    head = make_head().eval().double()
    x = torch.randn(2, 64, 5, 6, dtype=torch.float64)
    output = head([torch.zeros(1), x])
    assert output.shape == (2, 20, 33, 41)
    torch.testing.assert_close(output, classified(head, written_out(head, x)))
    # Corners are aligned: the scores of the feature's points are among those of the pixels.
    scores = head.classifier[1](written_out(head, x))
    torch.testing.assert_close(output[..., ::8, ::8], scores)


def test_dropout_is_of_training_alone():
    head = make_head()
    x = torch.randn(1, 64, 5, 6)
    head.train()
    assert not head([x]).equal(head([x]))
    head.eval()
    assert head([x]).equal(head([x]))
    head = make_head(dropout=0.0).train()
    assert head([x]).equal(head([x]))


def test_depth_counts_the_thresholds_that_are_passed():
    head = make_head(num_bins=4, min_depth=1.0, max_depth=16.0)
    output = torch.zeros(1, 8, 1, 5)
    # z is y_(2k+1) - y_(2k); the last column has them out of order, and their number counts.
    output[0, 1::2, 0] = torch.tensor(
        [[-1.0, 1, 1, 1, 1], [-1, -1, 1, 1, -1], [-1, -1, -1, 1, 1], [-1, -1, -1, 1, -1]]
    )
    depth = head.to_depth(output)
    assert depth.shape == (1, 1, 1, 5) and depth.dtype == torch.float32
    expected = [2**0.5, 2**1.5, 2**2.5, 2**3.5, 2**2.5]
    assert depth.flatten().tolist() == pytest.approx(expected)


def test_chi_is_decoded_by_the_clusters():
    init_default_scope('mmseg')
    torch.manual_seed(0)
    backbone = HCResNet(18, levels=2, **NARROW)
    backbone.eval()
    features = backbone(torch.randn(2, 3, 129, 161))
    assert [tuple(f.shape[2:]) for f in features] == [(33, 41), (17, 21), (9, 11), (5, 6)]
    head = make_head().eval()
    chi = written_out(head, features[3])
    for assignment, coarse, fine in (
        (features.assignments[1], (5, 6), (9, 11)),
        (features.assignments[0], (9, 11), (17, 21)),
    ):
        assert chi.shape[2:] == coarse
        # The value of every point is the mean of the clusters' around it, by their weights.
        chi = assignment.decode(chi)
        assert chi.shape[2:] == fine
    output = head(features)
    assert output.shape == (2, 20, 129, 161)
    torch.testing.assert_close(output, classified(head, chi))
    # Decoded before it is classified: of scores the mean would be another, by the interpolation.
    assert not torch.allclose(output, classified(head, written_out(head, features[3]))[..., :1, :1])


def test_without_levels_it_is_the_plain_head():
    init_default_scope('mmseg')
    torch.manual_seed(0)
    options = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), **NARROW)
    plain, clustering = ResNetV1c(depth=18, **options), HCResNet(18, levels=0, **options)
    plain.eval()
    clustering.eval()
    clustering.load_state_dict(plain.state_dict())
    head = make_head(feature_size=(9, 11)).eval()
    x = torch.randn(1, 3, 65, 81)
    assert head(clustering(x)).equal(head(plain(x)))


@pytest.mark.parametrize('dtype', [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('known', [True, False])
def test_training_reaches_every_parameter(known, dtype):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    backbone, head = HCResNet(18, levels=2, **NARROW), make_head()
    backbone.init_weights()
    backbone.train()
    head.train()
    depth = torch.full((2, 1, 129, 161), 3.0 if known else 0.0)
    depth[:, :, :9] = torch.nan
    with torch.autocast('cpu', dtype or torch.bfloat16, enabled=dtype is not None):
        output = head(backbone(torch.randn(2, 3, 129, 161)))
        loss = head.loss_decode(output, depth)
    loss.backward()
    assert loss.isfinite() and (loss > 0) == known
    for part in (backbone, head):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    if known:
        for name, parameter in backbone.clusterings.named_parameters():
            assert parameter.grad.any(), name


def test_the_loss_gets_the_heads_depths():
    head = make_head(min_depth=0.5, max_depth=80.0)
    assert (head.loss_decode.min_depth, head.loss_decode.max_depth) == (0.5, 80.0)
    several = make_head(
        loss_decode=[
            dict(type='OrdinalRegressionLoss', loss_weight=0.5),
            dict(type='OrdinalRegressionLoss', loss_name='loss_more', min_depth=0.5),
        ],
        min_depth=0.5,
    )
    assert [loss.min_depth for loss in several.loss_decode] == [0.5, 0.5]
    assert [loss.max_depth for loss in several.loss_decode] == [10.59, 10.59]
    with pytest.raises(ValueError, match=r"loss_decode: .*min_depth or the head's, 0.5, got 0.7"):
        make_head(loss_decode=dict(type='OrdinalRegressionLoss', min_depth=0.7), min_depth=0.5)


@pytest.mark.parametrize('kind', ['mmseg.OrdinalRegressionLoss', OrdinalRegressionLoss])
def test_the_loss_by_other_names_gets_them_too(kind):
    head = make_head(loss_decode=dict(type=kind), min_depth=1.0, max_depth=80.0)
    assert (head.loss_decode.min_depth, head.loss_decode.max_depth) == (1.0, 80.0)


def test_it_is_mmsegs():
    cfg = dict(type='DORNHead', in_channels=64, feature_size=(5, 6), channels=8)
    init_default_scope('mmseg')
    head = MODELS.build(cfg)
    assert isinstance(head, DORNHead) and not hasattr(head, 'conv_seg')
    convs = [m for m in head.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(convs) == 12 and all(m.bias is not None for m in convs)


def test_a_feature_of_another_size():
    sentence = r'inputs: expected a feature of \(5, 6\).* images of 33 x 41 .*got \(6, 6\)'
    with pytest.raises(ValueError, match=sentence):
        make_head()([torch.randn(1, 64, 6, 6)])
    init_default_scope('mmseg')
    backbone = HCResNet(18, levels=2, **NARROW)
    with pytest.raises(ValueError, match=r'images of 129 x 161 pixels give it, got \(5, 5\)'):
        make_head()(backbone(torch.randn(2, 3, 129, 129)))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(num_bins=0), 'num_bins: expected a positive int, got 0'),
        (dict(pool_size=0), 'pool_size: expected a positive int, got 0'),
        (dict(channels=-1), 'channels: expected a positive int, got -1'),
        (dict(feature_size=(5,)), r'feature_size: expected \(H, W\)'),
        (dict(feature_size=(5, 0)), 'feature_size: expected a positive int, got 0'),
        (dict(max_depth=0), 'max_depth: expected a positive number, got 0'),
        (dict(min_depth=11), 'max_depth: expected more than 11 m'),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make_head(**options)
