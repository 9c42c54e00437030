"""SegNet's parts against plain rewritings of them, and what they count and refuse."""

import pytest
import torch
from mmcv.cnn import VGG
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn import functional as F

from sapa_mm.segmentation import BalancedCrossEntropyLoss, SegNetBasic, SegNetHead, SegNetVGG
from sapa_mm.tools.presets import upsampler_config

CHANNELS = (64, 128, 256, 512, 512, 512)
WIDE = {'in_channels': CHANNELS, 'num_classes': 37}
# Small ones, all of different widths where they may differ.
TINY = {'in_channels': (8, 12, 16, 16), 'widths': ((16, 12), (8,), (8, 6)), 'num_classes': 5}
STEPS = {
    'c6_c5': (512, 512),
    'c5_c4': (512, 512),
    'c4_c3': (256, 256),
    'c3_c2': (128, 128),
    'c2_c1': (64, 64),
}
DECODER = 14_716_160 + 21_349
# What each adds, for C = 512, 512, 256, 128 and 64 in x and in the guide.
ADDED = {
    'nearest': (dict(), 0),
    'bilinear': (dict(), 0),
    'max-unpooling': (dict(), 0),
    'sapa-i': (dict(), 0),
    'deconv': (dict(), 9_766_336),
    'carafe': (dict(), 383_028),
    'index-net': (dict(), 19_547_392),
    'index-net m2o': (dict(variant='m2o'), 41_512_448),
    'a2u': (dict(), 56_126),
    'sapa-b': (dict(), 100_416),
    'sapa-g': (dict(), 149_157),
    'sapa-g key': (dict(self_projection='key'), 101_893),
}


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def unlike_identity(module: nn.Module) -> nn.Module:
    """Give batch normalizations statistics and affine terms, and biases values."""
    for name, value in module.state_dict().items():
        if name.endswith(('running_mean', 'bias')):
            value.normal_(0, 0.2)
        elif name.endswith('running_var') or (name.endswith('weight') and value.ndim == 1):
            value.uniform_(0.5, 2)
    return module.double()


def features(channels: tuple[int, ...], size: tuple[int, int], n: int = 1) -> list[Tensor]:
    """Random features of an image of that size, whose sizes are halved and rounded up."""
    sizes = [tuple(-(-side // 2**level) for side in size) for level in range(len(channels))]
    return [
        torch.randn(n, c, *s, dtype=torch.float64) for c, s in zip(channels, sizes, strict=True)
    ]


class TestVGG:
    def test_it_counts_what_vgg_counts_and_has_its_keys(self):
        backbone = SegNetVGG()
        assert count(backbone) == 14_723_136
        assert backbone.state_dict().keys() == VGG(16, with_bn=True).state_dict().keys()

    def test_features_are_those_before_the_poolings_and_the_last_pooled_one(self):
        torch.manual_seed(0)
        backbone = SegNetVGG()
        backbone.init_weights()
        backbone = unlike_identity(backbone).eval()
        state = backbone.state_dict()
        x = image = torch.randn(2, 3, 37, 22, dtype=torch.float64)
        expected = []
        layer = 0
        for convolutions in (2, 2, 3, 3, 3):
            for _ in range(convolutions):
                conv, norm = f'features.{layer}', f'features.{layer + 1}'
                x = F.conv2d(x, state[f'{conv}.weight'], state[f'{conv}.bias'], padding=1)
                statistics = (state[f'{norm}.{key}'] for key in ('running_mean', 'running_var'))
                affine = (state[f'{norm}.{key}'] for key in ('weight', 'bias'))
                x = F.relu(F.batch_norm(x, *statistics, *affine))
                layer += 3
            expected.append(x)
            # Rounded up: a last row or column alone is a cell of its own.
            padding = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
            x = F.max_pool2d(F.pad(x, padding, value=-torch.inf), 2)
            layer += 1
        actual = backbone(image)
        assert [tuple(out.shape[1:]) for out in actual] == [
            (64, 37, 22),
            (128, 19, 11),
            (256, 10, 6),
            (512, 5, 3),
            (512, 3, 2),
            (512, 2, 1),
        ]
        for out, value in zip(actual, [*expected, x], strict=True):
            torch.testing.assert_close(out, value, rtol=1e-9, atol=1e-9)

    def test_batch_normalizations_train_by_default(self):
        backbone = SegNetVGG()
        assert backbone.train() is backbone and backbone.eval() is backbone
        before = backbone.train().features[1].running_mean.clone()
        backbone(torch.randn(1, 3, 32, 32))
        assert not backbone.features[1].running_mean.equal(before)
        assert all(p.requires_grad for p in backbone.parameters())

    def test_published_weights_load(self, tmp_path):
        torch.manual_seed(0)
        # These are torchvision's names: 13 convolutions with biases, their norms, a classifier.
        published = {'classifier.0.weight': torch.zeros(2, 2)}
        layer, before = 0, 3
        for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(convolutions):
                published[f'features.{layer}.weight'] = torch.randn(width, before, 3, 3)
                for name in (f'{layer}.bias', *(f'{layer + 1}.{x}' for x in ('weight', 'bias'))):
                    published[f'features.{name}'] = torch.randn(width)
                published[f'features.{layer + 1}.running_mean'] = torch.randn(width)
                published[f'features.{layer + 1}.running_var'] = torch.rand(width)
                layer, before = layer + 3, width
            layer += 1
        file = tmp_path / 'vgg16_bn.pth'
        torch.save(published, file)
        backbone = SegNetVGG(init_cfg=dict(type='Pretrained', checkpoint=str(file)))
        backbone.init_weights()
        loaded = backbone.state_dict()
        for name, value in loaded.items():
            if not name.endswith('num_batches_tracked'):
                assert value.equal(published.pop(name)), name
        assert published.keys() == {'classifier.0.weight'}


class TestBasic:
    def test_features(self):
        torch.manual_seed(0)
        backbone = unlike_identity(SegNetBasic(channels=(4, 6), kernel_size=5)).eval()
        x = image = torch.randn(2, 3, 13, 10, dtype=torch.float64)
        expected = []
        for stage in backbone.stages:
            x = F.conv2d(x, stage.conv.weight, padding=2)
            x = F.relu(stage.bn(x))
            expected.append(x)
            x = F.max_pool2d(x, 2, ceil_mode=True)
        for out, value in zip(backbone(image), [*expected, x], strict=True):
            torch.testing.assert_close(out, value)
        assert x.shape == (2, 6, 4, 3)

    def test_the_published_one_has_four_stages_of_64_channels_and_no_biases(self):
        published = SegNetBasic()
        assert count(published) == (3 + 3 * 64) * 64 * 49 + 4 * 2 * 64
        assert [out.shape[1:] for out in published(torch.randn(1, 3, 17, 30))] == [
            (64, 17, 30),
            (64, 9, 15),
            (64, 5, 8),
            (64, 3, 4),
            (64, 2, 2),
        ]

    @pytest.mark.parametrize(
        ('options', 'error', 'message'),
        [
            (dict(channels=()), ValueError, 'channels: .* one stage'),
            (dict(channels=(8, 0)), ValueError, 'channels: .*positive'),
            (dict(channels=(8, 4.0)), TypeError, 'channels: .*4.0'),
            (dict(kernel_size=4), ValueError, 'kernel_size: .*odd'),
            (dict(in_channels=0), ValueError, 'in_channels: .*positive'),
        ],
    )
    def test_bad_input(self, options, error, message):
        with pytest.raises(error, match=message):
            SegNetBasic(**options)


class TestHead:
    @pytest.mark.parametrize('name', ADDED)
    def test_parameters(self, name):
        options, added = ADDED[name]
        cfg = upsampler_config(name.split()[0], options)
        with torch.device('meta'):
            head = SegNetHead(**WIDE, upsample_cfg=cfg)
        assert count(head.upsamplers) == added
        assert count(head) == DECODER + added
        steps = {n: (m.in_channels, m.guide_channels) for n, m in head.upsamplers.items()}
        assert list(steps.items()) == list(STEPS.items())

    @pytest.mark.parametrize('size', [(40, 24), (37, 22), (9, 8)])
    def test_with_max_unpooling_it_is_segnet(self, size):
        """PyTorch's own pooling indices, and gradients in the encoder and the decoder."""
        torch.manual_seed(0)
        head = SegNetHead(**TINY, upsample_cfg=dict(type='MaxUnpooling'))
        head = unlike_identity(head).eval()
        # The widths after a step are those of the next guide.
        guides = [g.relu().requires_grad_() for g in features((8, 12, 16), size, n=2)]
        pooled, indices = zip(
            *(F.max_pool2d(g, 2, ceil_mode=True, return_indices=True) for g in guides), strict=True
        )
        state = head.state_dict()
        x = pooled[-1]
        for step, (guide, index) in enumerate(zip(guides[::-1], indices[::-1], strict=True)):
            x = F.max_unpool2d(x, index, 2, output_size=guide.shape[2:])
            name = f'blocks.c{4 - step}_c{3 - step}'
            for layer in range(len(TINY['widths'][step])):
                x = F.conv2d(x, state[f'{name}.{layer}.conv.weight'], padding=1)
                norm = f'{name}.{layer}.bn'
                statistics = (state[f'{norm}.{key}'] for key in ('running_mean', 'running_var'))
                affine = (state[f'{norm}.{key}'] for key in ('weight', 'bias'))
                x = F.relu(F.batch_norm(x, *statistics, *affine))
        expected = F.conv2d(x, state['conv_seg.weight'], state['conv_seg.bias'], padding=1)
        actual = head([*guides, pooled[-1]])
        assert actual.shape == (2, 5, *size)
        torch.testing.assert_close(actual, expected)
        weight = torch.randn_like(actual)
        wanted = torch.autograd.grad((expected * weight).sum(), guides[-1], retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad((actual * weight).sum(), guides[-1]), wanted)

    def test_each_step_is_guided_by_the_feature_before_its_pooling(self):
        torch.manual_seed(0)
        head = SegNetHead(**TINY, upsample_cfg=dict(type='SAPA', similarity='bilinear'))
        head = unlike_identity(head).eval()
        inputs = features((8, 12, 16, 16), (21, 13))
        seen = {}
        for name, module in head.upsamplers.items():
            module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: args}))
        before = head(inputs)
        assert list(seen) == ['c4_c3', 'c3_c2', 'c2_c1']
        assert seen['c4_c3'][0] is inputs[3]
        assert [args[1] is inputs[2 - i] for i, args in enumerate(seen.values())] == [True] * 3
        # The channels of what is upsampled are those of the guide, as its block has been there.
        assert [args[0].shape[1] for args in seen.values()] == [16, 12, 8]
        for level in range(4):
            changed = list(inputs)
            changed[level] = torch.randn_like(inputs[level])
            assert not torch.allclose(head(changed), before)

    def test_a_step_of_its_own(self):
        head = SegNetHead(
            **TINY,
            upsample_cfg=dict(type='SAPA', embed_dims=8),
            step_cfgs=dict(c4_c3=dict(type='nearest'), c2_c1=dict(kernel_size=3)),
        )
        assert type(head.upsamplers['c4_c3']).__name__ == 'SingleInputUpsampler'
        assert [head.upsamplers[n].kernel_size for n in ('c3_c2', 'c2_c1')] == [5, 3]

    def test_basic_decoder_ends_its_blocks_without_a_relu(self):
        torch.manual_seed(0)
        options = dict(TINY, widths=((16,), (12,), (8,)), in_channels=(8, 12, 16, 16))
        options |= dict(kernel_size=7, cls_kernel_size=1, activate=False)
        options['widths'] = ((12,), (8,), (8,))
        head = SegNetHead(**options, upsample_cfg=dict(type='bilinear')).double().eval()
        assert head.blocks['c4_c3'][0].conv.weight.shape == (12, 16, 7, 7)
        assert head.conv_seg.weight.shape == (5, 8, 1, 1)
        x = torch.randn(1, 16, 9, 9, dtype=torch.float64)
        assert head.blocks['c4_c3'](x).min() < 0

    @pytest.mark.parametrize(
        ('options', 'error', 'message'),
        [
            (dict(in_channels=(8,)), ValueError, 'in_channels: .*last pooled'),
            (dict(widths=((8,), (8,))), ValueError, 'widths: .* 3 steps'),
            (dict(widths=((8,), (), (8,))), ValueError, 'widths: .* 3 steps'),
            (dict(widths=((8,), (1.5,), (8,))), TypeError, 'widths: .*1.5'),
            (dict(kernel_size=2), ValueError, 'kernel_size: .*odd'),
            (dict(cls_kernel_size='3'), TypeError, "cls_kernel_size: .*'3'"),
            (dict(activate=1), TypeError, 'activate: .*1'),
            (dict(step_cfgs=dict(c5_c4={})), ValueError, "step_cfgs: .*c4_c3.*'c5_c4'"),
            (dict(upsample_cfg=dict(type='SAPPA')), ValueError, "upsample_cfg: .*'SAPPA'"),
            (dict(upsample_cfg='SAPA'), TypeError, 'upsample_cfg: .*dict'),
            (
                dict(widths=((16, 12), (9,), (8, 6)), upsample_cfg=dict(type='MaxUnpooling')),
                ValueError,
                'guide_channels: max unpooling expected 9 .* got 8',
            ),
        ],
    )
    def test_bad_input(self, options, error, message):
        with pytest.raises(error, match=message):
            SegNetHead(**{**TINY, 'upsample_cfg': dict(type='nearest'), **options})

    def test_a_feature_too_few(self):
        head = SegNetHead(**TINY, upsample_cfg=dict(type='nearest'))
        with pytest.raises(ValueError, match='inputs: expected 4 features, got 3'):
            head(features((8, 12, 16), (16, 16)))


class TestLoss:
    WEIGHTS = (0.5, 2.0, 3.0)

    def test_value_and_gradient(self):
        torch.manual_seed(0)
        logits = torch.randn(2, 3, 5, 4, requires_grad=True)
        label = torch.randint(0, 3, (2, 5, 4))
        label[0, :2] = 255
        loss = BalancedCrossEntropyLoss(self.WEIGHTS, loss_weight=0.25)(logits, label)
        probability = logits.double().softmax(1)
        total = top = 0.0
        for n in range(2):
            for row in range(5):
                for column in range(4):
                    true = int(label[n, row, column])
                    if true != 255:
                        total += self.WEIGHTS[true]
                        top -= self.WEIGHTS[true] * probability[n, true, row, column].log()
        expected = 0.25 * top / total
        torch.testing.assert_close(loss.double(), expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
        )

    def test_another_index_is_ignored_and_nothing_to_learn_from_gives_0(self):
        logits = torch.randn(1, 3, 4, 4, requires_grad=True)
        loss = BalancedCrossEntropyLoss(self.WEIGHTS)
        label = torch.full((1, 4, 4), 1)
        assert loss(logits, label, ignore_index=1) == 0
        loss(logits, label, ignore_index=1).backward()
        assert not logits.grad.any()
        assert loss(logits, label) > 0

    def test_further_weights(self):
        logits, label = torch.randn(1, 3, 1, 2), torch.tensor([[[0, 2]]])
        weight = torch.tensor([[[0.0, 4.0]]])
        expected = 4 * 3.0 * -logits.log_softmax(1)[0, 2, 0, 1] / (0.5 + 3.0)
        actual = BalancedCrossEntropyLoss(self.WEIGHTS)(logits, label, weight)
        torch.testing.assert_close(actual, expected)

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r'class_weight: .*-1'):
            BalancedCrossEntropyLoss((1.0, -1.0))
        with pytest.raises(TypeError, match=r"class_weight: .*'a'"):
            BalancedCrossEntropyLoss(('a',))
        with pytest.raises(ValueError, match=r'class_weight: expected 2 weights.* got 3'):
            BalancedCrossEntropyLoss(self.WEIGHTS)(
                torch.randn(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.long)
            )
