import copy

import pytest
import torch
from mmdet.models.layers import PixelDecoder, TransformerEncoderPixelDecoder
from testing_hosts import (
    EVEN_SIZES,
    ODD_SIZES,
    assert_gradients,
    assert_same_bits,
    check_published_head,
    load_parent,
    make_features,
)

from sapa_mm.detection import GuidedPixelDecoder, GuidedTransformerEncoderPixelDecoder

pytestmark = pytest.mark.filterwarnings('ignore:.*`dropout` in MultiheadAttention')

CHANNELS = [8, 12, 16, 20]
NEAREST = dict(type='nearest')
STEPS = ['c4_c3', 'c3_c2', 'c2_c1']
ENCODER = dict(
    num_layers=1,
    layer_cfg=dict(
        self_attn_cfg=dict(embed_dims=8, num_heads=2, batch_first=True),
        ffn_cfg=dict(embed_dims=8, feedforward_channels=16, num_fcs=2, ffn_drop=0.0),
    ),
)
DECODERS = {
    'plain': (PixelDecoder, GuidedPixelDecoder, {}),
    'encoder': (
        TransformerEncoderPixelDecoder,
        GuidedTransformerEncoderPixelDecoder,
        dict(encoder=ENCODER, positional_encoding=dict(num_feats=4, normalize=True)),
    ),
}
# The second image is padded, which the encoder's mask must see.
METAS = [dict(batch_input_shape=(97, 65), img_shape=shape) for shape in ((97, 65), (80, 30))]
HEADS = [
    ('mmseg', 'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512', 'mmdet.GuidedPixelDecoder'),
    (
        'mmdet',
        'maskformer/maskformer_swin-l-p4-w12_64xb1-ms-300e_coco',
        'GuidedPixelDecoder',
    ),
    (
        'mmdet',
        'maskformer/maskformer_r50_ms-16xb1-75e_coco',
        'GuidedTransformerEncoderPixelDecoder',
    ),
]


@pytest.fixture(params=list(DECODERS))
def pair(request):
    """Builders of the parent and of ours."""
    parent, ours, extra = DECODERS[request.param]

    def builder(cls):
        def build(**options):
            defaults = dict(
                in_channels=CHANNELS,
                feat_channels=8,
                out_channels=6,
                norm_cfg=dict(type='GN', num_groups=4),
            )
            return cls(**copy.deepcopy({**defaults, **extra, **options}))

        return build

    return builder(parent), builder(ours)


@pytest.mark.parametrize('sizes', [ODD_SIZES, EVEN_SIZES])
@pytest.mark.parametrize('norm_cfg', [dict(type='GN', num_groups=4), dict(type='BN'), None])
def test_nearest_is_the_parent_bit_for_bit(pair, sizes, norm_cfg):
    parent, ours = pair[0](norm_cfg=norm_cfg), pair[1](norm_cfg=norm_cfg, upsample_cfg=NEAREST)
    assert load_parent(ours, parent) == []
    feats = make_features(CHANNELS, sizes)
    assert_same_bits(ours(feats, METAS), parent(feats, METAS))
    # Batch norm has counted once, as in the parent.
    assert_same_bits(list(ours.state_dict().values()), list(parent.state_dict().values()))


def test_each_output_is_guided_by_the_next_lateral(pair):
    parent = pair[0]()
    ours = pair[1](upsample_cfg=dict(type='SAPA', similarity='gated'))
    assert len(load_parent(ours, parent)) == 3 * 12
    for p in ours.upsamplers.parameters():
        torch.nn.init.normal_(p, std=0.3)
    assert list(ours.upsamplers) == STEPS
    feats = make_features(CHANNELS)
    nearest, memory = parent(feats, METAS)
    mask, ours_memory = ours(feats, METAS)
    x = ours.last_feat_conv(feats[3]) if ours.last_feat_conv else ours.encoder_out_proj(memory)
    for i, step in ((2, 'c4_c3'), (1, 'c3_c2'), (0, 'c2_c1')):
        guide = ours.lateral_convs[i](feats[i])
        x = ours.output_convs[i](guide + ours.upsamplers[step](x, guide))
    assert torch.equal(ours_memory, memory)
    torch.testing.assert_close(mask, ours.mask_feature(x), rtol=1e-6, atol=1e-6)
    assert mask.shape == nearest.shape == (2, 6, 25, 17)
    assert (mask - nearest).abs().max() > 0.01


def test_every_parameter_gets_a_gradient(pair):
    ours = pair[1](upsample_cfg=dict(type='SAPA', similarity='gated'))
    assert_gradients(ours.upsamplers, ours(make_features(CHANNELS), METAS)[0])
    assert all(p.grad is not None for p in ours.mask_feature.parameters())


def test_steps_can_differ(pair):
    step_cfgs = dict(c4_c3=dict(kernel_size=3), c2_c1=dict(type='bilinear'))
    up = pair[1](upsample_cfg=dict(type='SAPA'), step_cfgs=step_cfgs).upsamplers
    assert (up['c4_c3'].kernel_size, up['c3_c2'].kernel_size) == (3, 5)
    assert up['c2_c1'].layer.mode == 'bilinear'


def test_fewer_levels(pair):
    options = dict(in_channels=CHANNELS[:2])
    parent, ours = pair[0](**options), pair[1](upsample_cfg=NEAREST, **options)
    load_parent(ours, parent)
    assert list(ours.upsamplers) == ['c2_c1']
    feats = make_features(CHANNELS[:2], ODD_SIZES[:2])
    assert_same_bits(ours(feats, METAS), parent(feats, METAS))


def test_compiles_in_one_graph():
    channels = CHANNELS[:2]
    decoder = GuidedPixelDecoder(channels, 8, 6, None, upsample_cfg=dict(type='SAPA')).eval()
    compiled = torch.compile(decoder, backend='eager', fullgraph=True)
    feats = make_features(channels, ODD_SIZES[:2])
    expected = decoder(feats, METAS)
    torch.testing.assert_close(compiled(feats, METAS), expected, rtol=1e-5, atol=1e-5)


def test_upsamplers_are_initialized_too(pair):
    init_cfg = dict(type='Constant', layer='Linear', val=7.0)
    ours = pair[1](upsample_cfg=dict(type='SAPA', init_cfg=init_cfg))
    ours.init_weights()
    assert (ours.upsamplers['c3_c2'].key_proj.weight == 7).all()
    assert (ours.mask_feature.bias == 0).all()
    assert ours.mask_feature.weight.std() > 0


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(), TypeError, 'upsample_cfg: expected a dict with a type, got None'),
        (dict(upsample_cfg=dict(kernel_size=3)), ValueError, 'upsample_cfg: .*got none'),
        (dict(upsample_cfg=dict(type='SAPPA')), ValueError, "upsample_cfg: .*got 'SAPPA'"),
        (
            dict(upsample_cfg=dict(type='SAPA'), step_cfgs=dict(c4_c2={})),
            ValueError,
            "step_cfgs: expected steps of c4_c3, c3_c2, c2_c1, got 'c4_c2'",
        ),
        (
            dict(upsample_cfg=dict(type='SAPA'), step_cfgs=dict(c4_c3=3)),
            TypeError,
            r"step_cfgs\['c4_c3'\]: expected a dict, got 3",
        ),
    ],
)
def test_bad_config(pair, options, error, message):
    with pytest.raises(error, match=message):
        pair[1](**options)


@pytest.mark.parametrize(('framework', 'config', 'name'), HEADS)
def test_inside_a_published_head(framework, config, name):
    check_published_head(framework, config, name, same_as_parent='nearest', added=3 * 8)


def test_the_head_projects_the_memory_of_a_subclass():
    class Mine(GuidedPixelDecoder):
        pass

    options = dict(in_channels=CHANNELS, feat_channels=8, out_channels=6, norm_cfg=None)
    decoder = Mine(upsample_cfg=NEAREST, **options)
    assert type(decoder) == PixelDecoder  # noqa: E721  the head's very words
    assert GuidedPixelDecoder != TransformerEncoderPixelDecoder
    assert type(copy.deepcopy(decoder)) is Mine
    assert len({PixelDecoder, GuidedPixelDecoder, Mine}) == 3
    assert not isinstance(PixelDecoder(**options), GuidedPixelDecoder)
