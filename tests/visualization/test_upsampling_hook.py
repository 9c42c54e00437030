"""Pictures of upsampling from a run, in files and in TensorBoard."""

import copy

import mmdet.registry
import mmseg.registry
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from testing_configs import build, load, offline, samples

from sapa_mm.visualization import (
    UpsamplingVisualizationHook,
    draw_upsampling,
    figure_to_rgb,
    input_image,
    outline_prediction,
    record_upsampling,
)

CLASSES = ('ground', 'square')
STEPS = ['c4_c3', 'c4_c2', 'c4_c1', 'c3_c2', 'c3_c1', 'c2_c1']


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


def model_config(upsample_type='SAPA', mode='whole'):
    """A tiny SegFormer that pads its images to multiples of 32."""
    return ConfigDict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[120.0] * 3,
            std=[60.0] * 3,
            bgr_to_rgb=True,
            size=(64, 64),
            test_cfg=dict(size_divisor=32),
        ),
        backbone=dict(
            type='MixVisionTransformer',
            embed_dims=8,
            num_heads=[1, 1, 1, 1],
            num_layers=[1, 1, 1, 1],
            sr_ratios=[8, 4, 2, 1],
        ),
        decode_head=dict(
            type='GuidedSegformerHead',
            in_channels=[8] * 4,
            in_index=[0, 1, 2, 3],
            channels=8,
            num_classes=len(CLASSES),
            norm_cfg=dict(type='BN'),
            upsample_cfg=dict(type=upsample_type),
        ),
        train_cfg=dict(),
        test_cfg=dict(mode=mode, crop_size=(32, 32), stride=(16, 16)),
    )


def make_runner(folder, work_dir, model, hooks, loops=('val',), batch_size=1):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(112, 80)),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ]
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo=dict(classes=CLASSES, palette=[(0, 0, 0), (255, 0, 0)]),
        pipeline=pipeline,
    )
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(dataset=dataset, batch_size=batch_size, num_workers=0, sampler=sampler)
    options = {}
    for loop in loops:
        options |= {
            f'{loop}_dataloader': loader,
            f'{loop}_cfg': dict(type=f'{loop.capitalize()}Loop'),
            f'{loop}_evaluator': dict(type='IoUMetric'),
        }
        if loop == 'train':
            options['train_cfg'] = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=1)
            optimizer = dict(type='SGD', lr=0.1)
            options['optim_wrapper'] = dict(type='OptimWrapper', optimizer=optimizer)
            del options['train_evaluator']
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    return Runner(
        model,
        str(work_dir),
        **options,
        custom_hooks=hooks,
        visualizer=dict(type='SegLocalVisualizer', vis_backends=backends),
        default_scope='mmseg',
        log_level='ERROR',
        experiment_name=f'upsampling_{work_dir.name}',
        randomness=dict(seed=0),
    )


def hook(**options):
    return dict(type='UpsamplingVisualizationHook', **options)


def pictures_of(work_dir):
    """Stem to the pictures that the local backend wrote."""
    return {
        path.stem: np.asarray(Image.open(path).convert('RGB'))
        for path in work_dir.glob('*/vis_data/vis_image/*.png')
    }


@pytest.mark.parametrize('loop', ['val', 'test'])
def test_a_run_gives_pictures_to_every_backend(tmp_path, folder, loop):
    with DefaultScope.overwrite_default_scope('mmseg'):
        hooks = [hook(interval=1, steps=['c2_c1', 'c4_c3'])]
        runner = make_runner(folder, tmp_path, model_config(), hooks, [loop])
        runner.val() if loop == 'val' else runner.test()
        model = runner.model
        (batch, _) = runner.val_dataloader if loop == 'val' else runner.test_dataloader
        with record_upsampling(model) as recording:
            (sample,) = model.test_step(batch)
    expected = {f'{loop}_upsampling_{step}_{i}_0' for step in ('c4_c3', 'c2_c1') for i in range(2)}
    got = pictures_of(tmp_path)
    assert set(got) == expected
    image = input_image(recording.inputs, model.data_preprocessor)
    assert image.shape == (96, 128, 3)  # 80 x 112, padded
    prediction = outline_prediction(image, sample)
    for name in ('c4_c3', 'c2_c1'):
        figure = draw_upsampling(recording.steps[name], image, prediction)
        assert np.array_equal(got[f'{loop}_upsampling_{name}_0_0'], figure_to_rgb(figure))

    (events,) = tmp_path.glob('*/vis_data/events.*')
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    tags = accumulator.Tags()['images']
    assert {f'{tag}_0' for tag in tags} == expected
    (event,) = accumulator.Images(f'{loop}_upsampling_c2_c1_1')
    shape = got[f'{loop}_upsampling_c2_c1_1_0'].shape
    assert (event.height, event.width) == shape[:2]


def test_the_first_image_of_every_other_batch(tmp_path, folder):
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = model_config('bilinear')
        make_runner(folder, tmp_path / 'a', model, [hook(interval=2, steps=['c3_c1'])]).val()
        make_runner(folder, tmp_path / 'b', model, [hook(interval=5)], batch_size=2).val()
    assert set(pictures_of(tmp_path / 'a')) == {'val_upsampling_c3_c1_0_0'}
    assert set(pictures_of(tmp_path / 'b')) == {f'val_upsampling_{step}_0_0' for step in STEPS}


def test_training_and_metrics_stay_as_they_are(tmp_path, folder):
    found = []
    with DefaultScope.overwrite_default_scope('mmseg'):
        for name, hooks in (('with', [hook(interval=2, steps=['c2_c1'])]), ('without', [])):
            loops = ['train', 'val']
            runner = make_runner(folder, tmp_path / name, model_config(mode='slide'), hooks, loops)
            runner.train()
            assert runner.model.test_cfg.mode == 'slide'
            found.append((runner.val(), runner.model.state_dict()))
    (values, state), (expected_values, expected_state) = found
    assert values == expected_values
    assert all(torch.equal(state[key], expected_state[key]) for key in expected_state)
    # They show whole images, though the predictions are of windows.
    pictures = pictures_of(tmp_path / 'with')
    assert set(pictures) == {f'val_upsampling_c2_c1_0_{n}' for n in (1, 2)}
    shown = pictures['val_upsampling_c2_c1_0_1']
    assert not np.array_equal(shown, pictures['val_upsampling_c2_c1_0_2'])  # trained on


def test_test_time_augmentation_is_left_alone(tmp_path, folder):
    model = dict(type='SegTTAModel', module=model_config())
    with DefaultScope.overwrite_default_scope('mmseg'):
        runner = make_runner(folder, tmp_path, model, [hook(interval=1)], ['test'])
        flips = [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)]
        pack = dict(type='TestTimeAug', transforms=[flips, [dict(type='PackSegInputs')]])
        runner._test_dataloader['dataset']['pipeline'][-1] = pack
        assert 0 <= runner.test()['mIoU'] <= 100
    assert pictures_of(tmp_path) == {}


@pytest.mark.parametrize(
    ('steps', 'head', 'message'),
    [
        (['c9_c8'], None, "steps: expected some of c4_c3, .*, got 'c9_c8'"),
        (None, 'SegformerHead', 'model: expected one with upsamplers.*got EncoderDecoder of'),
    ],
)
def test_what_cannot_be_drawn_stops_before_training(tmp_path, folder, steps, head, message):
    model = model_config()
    if head:
        del model.decode_head['upsample_cfg']
        model.decode_head.type = head
    with DefaultScope.overwrite_default_scope('mmseg'):
        runner = make_runner(folder, tmp_path, model, [hook(steps=steps)], ['train', 'val'])
        before = {key: value.clone() for key, value in runner.model.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            runner.train()
        after = runner.model.state_dict()
    assert runner.iter == 0
    batches = [key for key in before if key.endswith('num_batches_tracked')]
    assert batches and all(torch.equal(before[key], after[key]) for key in batches)


@pytest.mark.parametrize('name', ['yolox_s_sapa-b_8xb8', 'rtmdet_s_sapa-b_8xb32'])
def test_the_necks_of_yolox_and_rtmdet(name):
    cfg = offline(load(f'sapa/{name}-300e_coco.py'))
    batch = {key: values[:1] for key, values in samples(cfg).items()}
    model = build(cfg).eval()
    with torch.no_grad():
        outputs = model.test_step(copy.deepcopy(batch))
        drawn = dict(UpsamplingVisualizationHook().pictures(model, 0, batch, outputs))
    assert list(drawn) == ['upsampling_c3_c2_batch_0', 'upsampling_c2_c1_batch_0']
    assert all(picture.std() > 1 for picture in drawn.values())


@pytest.mark.parametrize('framework', [mmseg, mmdet])
def test_both_frameworks_find_it(framework):
    name = framework.__name__
    with DefaultScope.overwrite_default_scope(name):
        built = framework.registry.HOOKS.build(hook(interval=7, features='first3'))
    assert type(built) is UpsamplingVisualizationHook
    assert (built.interval, built.steps, built.features) == (7, None, 'first3')


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(interval=0), ValueError, 'interval'),
        (dict(interval=2.5), TypeError, 'interval'),
        (dict(steps='c4_c3'), TypeError, "steps: expected a list .*'c4_c3'"),
        (dict(steps=[3]), TypeError, 'steps'),
        (dict(features='last'), ValueError, 'features: .*pca.*last'),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        UpsamplingVisualizationHook(**options)
