"""Superpixels of a clustering backbone: as predictions, and as pictures of a run."""

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.registry import HOOKS, MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from testing_clustering import TINY

from sapa_mm.segmentation import (
    SuperpixelEncoderDecoder,
    SuperpixelVisualizationHook,
    achievable_segmentation_accuracy,
    boundary_recall,
    image_superpixels,
)
from sapa_mm.upsamplers import superpixels
from sapa_mm.visualization import mark_superpixels

CLASSES = ('ground', 'square', 'disc')


def model_config(kind='SuperpixelEncoderDecoder', levels=2, test_cfg=None):
    """A tiny segmentor that pads its images to multiples of 32."""
    return ConfigDict(
        type=kind,
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[120.0] * 3,
            std=[60.0] * 3,
            bgr_to_rgb=True,
            test_cfg=dict(size_divisor=32),
        ),
        backbone=dict(
            TINY, type='HCResNet', depth=18, levels=levels, clustering_cfg=dict(embed_dims=8)
        ),
        decode_head=dict(
            type='HCHead',
            head_type='FCNHead',
            in_channels=64,
            in_index=3,
            channels=8,
            num_convs=1,
            concat_input=False,
            num_classes=len(CLASSES),
            norm_cfg=dict(type='BN'),
        ),
        train_cfg=dict(),
        test_cfg=test_cfg or dict(mode='whole'),
    )


def build(config):
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(config).eval()


def sample_with_meta(img_shape, ori_shape, flip=None):
    """A data sample as a test pipeline leaves it."""
    return SegDataSample(
        metainfo=dict(
            img_shape=img_shape, ori_shape=ori_shape, flip=flip is not None, flip_direction=flip
        )
    )


def metas_of(data):
    """Meta information of preprocessed images, with their padding."""
    return [sample.metainfo for sample in data['data_samples']]


def unpadded(model, inputs, sample):
    """Each level's superpixels (h, w) of a single image, padding cut off and flipped back."""
    with torch.no_grad():
        assignments = model.backbone(inputs).assignments
    height, width = sample.img_shape
    axes = {None: [], 'horizontal': [1], 'vertical': [0]}[sample.flip_direction]
    levels = superpixels(assignments, inputs.shape[2:])
    return [level[0, :height, :width].flip(axes) for level in levels]


@pytest.mark.parametrize('mode', ['whole', 'slide'])
@pytest.mark.parametrize('flip', [None, 'horizontal', 'vertical'])
def test_prediction_of_a_resized_padded_and_flipped_image(flip, mode):
    slide = dict(mode='slide', crop_size=(64, 64), stride=(48, 48))
    test_cfg = slide if mode == 'slide' else None
    model = build(model_config(test_cfg=test_cfg))
    assert type(model) is SuperpixelEncoderDecoder
    plain = build(model_config('EncoderDecoder', test_cfg=test_cfg))
    plain.load_state_dict(model.state_dict())
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    # The image had been halved, so whatever the rule, every pixel becomes 2 x 2.
    sample = sample_with_meta((50, 70), (100, 140), flip)
    (got,) = model.test_step(dict(inputs=[image], data_samples=[sample]))
    found = got.pred_superpixels
    assert tuple(found.strides) == (16, 32)
    assert found.data.shape == (2, 100, 140)
    assert found.data.dtype == torch.int64
    inputs = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]))['inputs']
    assert inputs.shape == (1, 3, 64, 96)
    for level, expected in zip(found.data, unpadded(model, inputs, sample), strict=True):
        assert len(expected.unique()) > 2
        repeated = expected.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
        assert torch.equal(level, repeated)
    # All else is as without.
    sample = sample_with_meta((50, 70), (100, 140), flip)
    (expected,) = plain.test_step(dict(inputs=[image], data_samples=[sample]))
    torch.testing.assert_close(got.seg_logits.data, expected.seg_logits.data)
    assert got.pred_sem_seg.data.shape == (1, 100, 140)
    assert 'pred_superpixels' not in expected


def test_superpixels_of_any_original_size():
    """Every pixel has the superpixel of one beside its place in the network's input, or of it."""
    model = build(model_config())
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    for ori_shape in ((37, 91), (25, 35), (50, 70), (111, 64)):
        sample = sample_with_meta((50, 70), ori_shape, 'horizontal')
        data = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]))
        (found,) = image_superpixels(model, data['inputs'], metas_of(data))
        expected = unpadded(model, data['inputs'], sample)
        for level, small in zip(found.values(), expected, strict=True):
            assert level.shape == ori_shape
            rows, cols = (
                torch.arange(new) * old // new for new, old in zip(ori_shape, (50, 70), strict=True)
            )
            matches = [
                level == small[(rows + dy).clamp(max=49)][:, (cols + dx).clamp(max=69)]
                for dy in (0, 1)
                for dx in (0, 1)
            ]
            assert torch.stack(matches).any(dim=0).all()
            if ori_shape == (50, 70):
                assert torch.equal(level, small)


@pytest.mark.parametrize('levels', [1, 3, 4])
def test_superpixels_of_every_level_of_a_batch(levels):
    model = build(model_config(levels=levels))
    images = [torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8) for _ in range(2)]
    samples = [
        sample_with_meta((50, 70), (50, 70), 'vertical'),
        sample_with_meta((50, 70), (100, 140)),
    ]
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples))
    found = image_superpixels(model, data['inputs'], metas_of(data))
    assert [list(of_image) for of_image in found] == [[4, 8, 16, 32][-levels:]] * 2
    assert not model.training
    for i, (of_image, factor) in enumerate(zip(found, (1, 2), strict=True)):
        expected = unpadded(model, data['inputs'][i : i + 1], samples[i])
        for stride, level, small in zip(of_image, of_image.values(), expected, strict=True):
            assert level.dtype == torch.int64
            repeated = small.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1)
            # Alone, an image may differ in the last bits from itself in a batch.
            assert (level == repeated).float().mean() > 0.99
            assert level.max() < (64 // stride) * (96 // stride)


def test_prediction_without_data_samples():
    model = build(model_config())
    inputs = torch.randn(2, 3, 64, 96)
    outs = model(inputs, mode='predict')
    with torch.no_grad():
        expected = superpixels(model.backbone(inputs).assignments, (64, 96))
    for i, out in enumerate(outs):
        assert torch.equal(out.pred_superpixels.data, torch.stack([x[i] for x in expected]))
        assert out.pred_sem_seg.data.shape == (1, 64, 96)


def test_backbones_that_do_not_cluster():
    inputs = torch.randn(1, 3, 64, 64)
    metas = [sample_with_meta((64, 64), (64, 64)).metainfo]
    config = model_config('EncoderDecoder')
    config.backbone = dict(TINY, type='ResNetV1c', depth=18)
    config.decode_head.type = config.decode_head.pop('head_type')
    with pytest.raises(TypeError, match='HCResNet'):
        image_superpixels(build(config), inputs, metas)
    with pytest.raises(ValueError, match='level'):
        image_superpixels(build(model_config(levels=0)), inputs, metas)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two images of 40x56 and their labels."""
    folder = tmp_path_factory.mktemp('data')
    generator = np.random.default_rng(0)
    for name, shape, count in (('images', (10, 14, 3), 256), ('labels', (10, 14), len(CLASSES))):
        (folder / name).mkdir()
        for i in range(2):
            blocks = generator.integers(0, count, shape)
            blocks = blocks.repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8)
            Image.fromarray(blocks).save(folder / name / f'{i}.png')
    return folder


def make_runner(folder, work_dir, loop, kind, metric, batch_size, interval, augmented=False):
    """mmengine's runner of a validation or a test with the hook; images are resized and padded."""
    model, pack = model_config(kind), [dict(type='PackSegInputs')]
    if augmented:
        model = dict(type='SegTTAModel', module=model)
        flips = [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)]
        pack = [dict(type='TestTimeAug', transforms=[flips, pack])]
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo=dict(classes=CLASSES, palette=[(0, 0, 0), (255, 0, 0), (0, 255, 0)]),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(112, 80)),
            dict(type='LoadAnnotations'),
            *pack,
        ],
    )
    loader = dict(
        dataset=dataset,
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    return Runner(
        model,
        str(work_dir),
        **{
            f'{loop}_dataloader': loader,
            f'{loop}_cfg': dict(type=f'{loop.capitalize()}Loop'),
            f'{loop}_evaluator': dict(type=metric),
        },
        custom_hooks=[dict(type='SuperpixelVisualizationHook', interval=interval)],
        visualizer=dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
        default_scope='mmseg',
        log_level='ERROR',
        experiment_name=f'superpixels_{work_dir.name}',
    )


@pytest.mark.parametrize('loop', ['val', 'test'])
@pytest.mark.parametrize(
    ('kind', 'metric', 'batch_size', 'interval', 'drawn'),
    [
        ('SuperpixelEncoderDecoder', 'SuperpixelMetric', 1, 1, [0, 1]),
        ('EncoderDecoder', 'IoUMetric', 1, 2, [0]),
        ('EncoderDecoder', 'IoUMetric', 2, 5, [0, 1]),
    ],
)
def test_runner_measures_and_draws(
    tmp_path, folder, loop, kind, metric, batch_size, interval, drawn
):
    with DefaultScope.overwrite_default_scope('mmseg'):
        runner = make_runner(folder, tmp_path, loop, kind, metric, batch_size, interval)
        values = runner.val() if loop == 'val' else runner.test()
        loader = runner.val_dataloader if loop == 'val' else runner.test_dataloader
        found = []
        # The batches are the same, so that not a bit differs.
        for batch in loader:
            data = runner.model.data_preprocessor(batch)
            with torch.no_grad():
                found += image_superpixels(runner.model, data['inputs'], metas_of(data))
    assert [list(of_image) for of_image in found] == [[16, 32]] * 2

    (pictures,) = tmp_path.glob('*/vis_data/vis_image')
    files = [path for path in pictures.rglob('*') if path.is_file()]
    assert len(files) == len(drawn)
    got = [np.asarray(Image.open(path).convert('RGB')) for path in files]
    for i in drawn:
        image = np.asarray(Image.open(folder / 'images' / f'{i}.png'))
        panels = [mark_superpixels(image, level.numpy()) for level in found[i].values()]
        expected = np.concatenate(panels, axis=1)
        assert expected.shape == (40, 112, 3)
        assert sum(np.array_equal(picture, expected) for picture in got) == 1

    if metric == 'SuperpixelMetric':
        labels = [np.asarray(Image.open(folder / 'labels' / f'{i}.png')) for i in range(2)]
        for stride in (16, 32):
            for name, measure in (
                ('ASA', achievable_segmentation_accuracy),
                ('BR', boundary_recall),
            ):
                each = [
                    measure(of_image[stride].numpy(), label)
                    for of_image, label in zip(found, labels, strict=True)
                ]
                assert each[0] != each[1]
                expected = 100 * sum(each) / 2
                assert values[f'{name}/s{stride}'] == pytest.approx(expected, abs=0.0051)


def test_hook_leaves_test_time_augmentation_alone(tmp_path, folder):
    with DefaultScope.overwrite_default_scope('mmseg'):
        runner = make_runner(
            folder, tmp_path, 'test', 'EncoderDecoder', 'IoUMetric', 1, 1, augmented=True
        )
        values = runner.test()
    assert 0 <= values['mIoU'] <= 100
    assert not list(tmp_path.glob('*/vis_data/vis_image'))


@pytest.mark.parametrize(('mode', 'runs'), [('whole', 1), ('slide', None)])
def test_whole_images_take_the_backbone_once(mode, runs):
    test_cfg = dict(mode=mode, crop_size=(32, 32), stride=(16, 16))
    model = build(model_config(test_cfg=test_cfg))
    sizes = []
    model.backbone.register_forward_hook(lambda module, args, out: sizes.append(args[0].shape))
    model.predict(torch.randn(1, 3, 48, 64))
    assert sizes.count((1, 3, 48, 64)) == 1
    assert len(sizes) == runs or (runs is None and len(sizes) > 2)


def test_hook_is_registered():
    hook = HOOKS.build(dict(type='mmseg.SuperpixelVisualizationHook'))
    assert type(hook) is SuperpixelVisualizationHook


@pytest.mark.parametrize('wrong', [0, -1, 2.5, '5', True, None], ids=repr)
def test_hook_refuses_a_bad_interval(wrong):
    with pytest.raises((TypeError, ValueError), match='interval'):
        SuperpixelVisualizationHook(interval=wrong)
