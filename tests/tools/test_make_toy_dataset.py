import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy import ndimage
from testing_utils import contents

from sapa_mm.tools.toy_dataset import command as toy
from sapa_mm.tools.toy_dataset import scenes, shapes

TOOLS = Path(__file__).resolve().parents[2] / 'tools'

SMALL = ('--num-train', '6', '--num-val', '3', '--size', '96', '128')
TINY = toy.Options(num_train=2, num_val=1, size=(64, 64))
ADE_INDICES = {3, 1, 10, 14} | {128, 127, 18, 20, 120, 150, 136}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp('toy') / 'set'
    assert toy.main(['--out', str(out), *SMALL]) == 0
    return out


@pytest.fixture(scope='module')
def ade_dataset(dataset):
    from mmseg.datasets import ADE20KDataset

    return ADE20KDataset(
        data_root=str(dataset / 'ade'),
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmseg.LoadAnnotations', reduce_zero_label=True),
        ],
    )


@pytest.fixture(scope='module')
def coco_dataset(dataset):
    from mmdet.datasets import CocoDataset

    return CocoDataset(
        data_root=str(dataset / 'coco') + '/',
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )


def decode(polygons, shape):
    encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))
    return coco_mask.decode(encoded).astype(bool)


def start_endless(out, *options):
    """Start a run that takes minutes; return it once it has written a few images."""
    command = [sys.executable, TOOLS / 'make_toy_dataset.py', '--out', out, '--size', '64']
    process = subprocess.Popen(
        [*map(str, command), '--num-train', '9999', *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    known = set(out.parent.glob(f'.{out.name}.building-*'))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for build in set(out.parent.glob(f'.{out.name}.building-*')) - known:
            if len(list(build.rglob('*.jpg'))) > 4:
                return process, build
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f'the run wrote no images: {process.communicate()[1]}')


def test_class_tables_equal_metainfo():
    from mmdet.datasets import CocoDataset
    from mmseg.datasets import ADE20KDataset

    ade_classes = ADE20KDataset.METAINFO['classes']
    for kind in (*scenes.BACKGROUNDS.values(), *scenes.OBJECTS):
        assert ade_classes[kind.ade_index - 1] == kind.ade_name
    assert tuple(toy.COCO_NAMES) == CocoDataset.METAINFO['classes']
    assert {kind.coco_name for kind in scenes.OBJECTS} <= set(toy.COCO_NAMES)
    ids = dict(zip(toy.COCO_NAMES, toy.COCO_IDS, strict=True))
    official = {'person': 1, 'stop sign': 13, 'backpack': 27, 'dining table': 67, 'toothbrush': 90}
    assert {name: ids[name] for name in official} == official


def test_mmseg_loads_the_ade_layout(ade_dataset):
    assert len(ade_dataset) == 6
    seen = set()
    for sample in ade_dataset:
        assert sample['img'].shape == (96, 128, 3)
        assert sample['gt_seg_map'].shape == (96, 128)
        seen |= set(np.unique(sample['gt_seg_map']).tolist())
    assert seen <= {index - 1 for index in ADE_INDICES} | {255}
    assert len(seen - {255}) >= 9


def test_mmdet_loads_the_coco_layout_and_agrees_with_ade(coco_dataset, ade_dataset):
    ade_index = {kind.coco_name: kind.ade_index for kind in scenes.OBJECTS}
    names = coco_dataset.metainfo['classes']
    assert len(names) == 80
    assert len(coco_dataset) == len(ade_dataset) == 6
    for sample, ade_sample in zip(coco_dataset, ade_dataset, strict=True):
        np.testing.assert_array_equal(sample['img'], ade_sample['img'])
        from_coco = np.zeros((96, 128), int)
        boxes = sample['gt_bboxes'].tensor.numpy()
        assert len(boxes) > 0
        assert not sample['gt_ignore_flags'].any()
        labels = sample['gt_bboxes_labels']
        masks = sample['gt_masks'].masks.astype(bool)
        for label, box, mask in zip(labels, boxes, masks, strict=True):
            rows, columns = np.nonzero(mask)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == tight
            assert not from_coco[mask].any()  # visible masks don't overlap
            from_coco[mask] = ade_index[names[label]]
        in_ade = ade_sample['gt_seg_map'].astype(int) + 1
        in_ade[np.isin(in_ade, [1, 3, 10, 14, 256])] = 0
        np.testing.assert_array_equal(from_coco, in_ade)


def test_validation_split_and_areas(dataset):
    content = json.loads((dataset / 'coco/annotations/instances_val2017.json').read_text())
    assert [image['file_name'] for image in content['images']] == [
        path.name for path in sorted((dataset / 'coco/val2017').iterdir())
    ]
    assert len(content['images']) == 3
    assert len(content['categories']) == 80
    for annotation in content['annotations']:
        assert annotation['area'] == decode(annotation['segmentation'], (96, 128)).sum()
        assert annotation['iscrowd'] == 0
    assert len(list((dataset / 'ade/annotations/validation').glob('ADE_val_*.png'))) == 3


@pytest.mark.parametrize('seed', range(5))
def test_polygons_decode_to_the_mask(seed):
    rng = np.random.default_rng(seed)
    for smoothness in (0, 1.2):
        noise = ndimage.gaussian_filter(rng.random((33, 41)), smoothness)
        mask = noise > np.quantile(noise, rng.uniform(0.1, 0.6))
        np.testing.assert_array_equal(decode(shapes.mask_to_polygons(mask), mask.shape), mask)


def test_polygon_of_a_wheel_keeps_its_holes():
    from mmdet.structures.mask import PolygonMasks

    _, wheels = shapes.draw_bicycle(np.random.default_rng(0))[0]
    affine = np.array([[90.0, 0, 80], [0, -90.0, 120]])
    mask = shapes.coverage(wheels, affine, (160, 160)) >= 0.5
    assert ndimage.label(~mask)[1] - 1 >= 8
    polygons = shapes.mask_to_polygons(mask)
    assert len(polygons) == ndimage.label(mask)[1]
    np.testing.assert_array_equal(decode(polygons, mask.shape), mask)
    # The bridges stay closed when mmdet enlarges and flips the polygons.
    masks = PolygonMasks([[np.array(polygon) for polygon in polygons]], 160, 160)
    enlarged = masks.resize((480, 480)).flip().to_bitmap().masks[0].astype(bool)
    np.testing.assert_array_equal(enlarged, mask[:, ::-1].repeat(3, 0).repeat(3, 1))


def test_coverage_is_antialiased_and_in_place():
    affine = np.array([[10.0, 0, 14.3], [0, -10.0, 17.6]])
    covered = shapes.coverage([(True, shapes.ellipse((0, 0), (1, 1)))], affine, (32, 32))
    assert covered.sum() == pytest.approx(np.pi * 100, rel=0.04)
    y, x = np.mgrid[:32, :32] + 0.5
    assert np.average(x, weights=covered) == pytest.approx(14.3, abs=0.15)
    assert np.average(y, weights=covered) == pytest.approx(17.6, abs=0.15)
    assert ((covered > 0.1) & (covered < 0.9)).sum() > 30


def test_scenes_are_annotated_where_the_picture_changes():
    on_border, beside = [], []
    for k in range(12):
        scene = scenes.render_scene(np.random.default_rng(k), (96, 96))
        masks = [mask for _, mask in scene.instances]
        assert masks
        assert np.sum(masks, 0).max() == 1
        assert min(mask.sum() for mask in masks) >= scenes.MIN_AREA
        assert set(np.unique(scene.labels).tolist()) <= ADE_INDICES | {0}
        change = np.abs(np.diff(scene.image.astype(float), axis=1)).mean(-1)
        border = np.diff(scene.labels.astype(int), axis=1) != 0
        near = ndimage.binary_dilation(border, np.ones((1, 5)))
        ring = ndimage.binary_dilation(border, np.ones((1, 9))) & ~near
        on_border.append(change[border].mean())
        beside.append(change[ring].mean())
    assert np.mean(on_border) > 2 * np.mean(beside)


def test_small_remains_are_unlabelled(monkeypatch):
    monkeypatch.setattr(scenes, 'MIN_AREA', 400)
    dropped = 0
    for k in range(4):
        scene = scenes.render_scene(np.random.default_rng(k), (96, 96))
        assert all(mask.sum() >= 400 for _, mask in scene.instances)
        dropped += (scene.labels == 0).sum()
        assert np.isin(scene.labels, [0, 1, 3, 10, 14]).sum() == 96 * 96 - sum(
            mask.sum() for _, mask in scene.instances
        )
    assert dropped > 0


def test_equal_seeds_give_equal_files_and_counts_can_grow(tmp_path):
    for name in ('a', 'b'):
        toy.make_dataset(tmp_path / name, TINY)
    first = contents(tmp_path / 'a')
    assert first == contents(tmp_path / 'b')
    assert len(first) == 3 * 3 + 3  # image, labels, image; two json files and the marker

    toy.make_dataset(tmp_path / 'more', toy.Options(4, 2, (64, 64)))
    more = contents(tmp_path / 'more')
    pictures = {name for name in first if name.endswith(('.jpg', '.png'))}
    assert all(first[name] == more[name] for name in pictures)
    assert len({more[name] for name in more if name.startswith('ade/images')}) == 6

    toy.make_dataset(tmp_path / 'other', toy.Options(2, 1, (64, 64), seed=1))
    other = contents(tmp_path / 'other')
    assert not any(first[name] == other[name] for name in pictures)


def test_layouts_can_be_chosen(tmp_path, capsys):
    command = ['--num-train', '1', '--num-val', '1', '--size', '64', '--layouts', 'coco']
    assert toy.main(['--out', str(tmp_path / 'toy'), *command]) == 0
    assert sorted(path.name for path in (tmp_path / 'toy').iterdir()) == ['coco', toy.MARKER]
    printed = capsys.readouterr().out
    assert f"mmdetection: data_root='{tmp_path / 'toy' / 'coco'}/'" in printed
    assert 'mmsegmentation' not in printed
    for kind in scenes.OBJECTS:
        assert kind.coco_name in printed


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--num-train', '0'], 'num_train: expected a positive int, got 0'),
        (['--num-val', '-2'], 'num_val: expected a positive int, got -2'),
        (['--size', '63'], 'size: expected an int from 64 to 2048, got 63'),
        (['--size', '64', '9999'], 'size: expected an int from 64 to 2048, got 9999'),
        (['--size', '64', '64', '64'], 'size must be a height and a width'),
        (['--seed', '-1'], 'seed: expected an int of at least 0, got -1'),
        (['--layouts', 'voc'], "invalid choice: 'voc'"),
    ],
)
def test_bad_options_are_refused_first(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        toy.main(['--out', str(tmp_path / 'sub' / 'toy'), *options])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_options_check_types():
    with pytest.raises(TypeError, match=r'num_train: expected a positive int, got 2\.5'):
        toy.Options(num_train=2.5)


def test_existing_output_is_refused_and_replaced_only_by_force(tmp_path, capsys):
    out = tmp_path / 'toy'
    command = ['--out', str(out), '--num-train', '1', '--num-val', '1', '--size', '64']
    assert toy.main(command) == 0
    before = contents(out)
    assert toy.main([*command, '--seed', '5']) == 1
    assert 'has ade and coco: pass --force to replace that' in capsys.readouterr().err
    assert contents(out) == before
    assert toy.main([*command, '--seed', '5', '--force']) == 0
    assert contents(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ['toy']


def test_layouts_are_added_and_replaced_one_by_one(tmp_path):
    out = tmp_path / 'toy'
    command = ['--out', str(out), '--num-train', '1', '--num-val', '1', '--size', '64']
    assert toy.main([*command, '--layouts', 'ade']) == 0
    first = contents(out)
    assert toy.main([*command, '--layouts', 'bsds', '--seed', '5']) == 0
    both = contents(out)
    assert {name: both[name] for name in first if name != toy.MARKER} == {
        name: data for name, data in first.items() if name != toy.MARKER
    }
    assert any(name.startswith('bsds/') for name in both)
    record = json.loads(both[toy.MARKER])
    assert [record[layout]['seed'] for layout in ('ade', 'bsds')] == [0, 5]
    # Being asked to replace one of them leaves the other alone.
    assert toy.main([*command, '--layouts', 'ade', '--seed', '7']) == 1
    assert contents(out) == both
    assert toy.main([*command, '--layouts', 'ade', '--seed', '7', '--force']) == 0
    after = contents(out)
    changed = {name.partition('/')[0] for name in both if both[name] != after.get(name)}
    assert changed == {'ade', toy.MARKER}
    assert [path.name for path in tmp_path.iterdir()] == ['toy']


def test_what_was_kept_survives_a_run_that_was_killed_while_moving_it(tmp_path):
    out, backup = tmp_path / 'toy', tmp_path / '.toy.old'
    command = ['--num-train', '1', '--num-val', '1', '--size', '64', '--layouts']
    assert toy.main(['--out', str(backup), *command, 'ade']) == 0
    assert toy.main(['--out', str(out), *command, 'bsds']) == 0
    assert toy.main(['--out', str(out), *command, 'depth']) == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ['ade', 'bsds', 'depth', toy.MARKER]
    assert not backup.exists()


def test_force_never_replaces_a_foreign_folder(tmp_path, capsys):
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'thesis.tex').write_text('precious')
    assert toy.main(['--out', str(tmp_path / 'home'), '--force']) == 1
    assert 'was not made by this tool' in capsys.readouterr().err
    assert contents(tmp_path) == {'home/thesis.tex': b'precious'}


def test_failure_keeps_the_old_dataset(tmp_path):
    toy.make_dataset(tmp_path / 'toy', TINY)
    before = contents(tmp_path)
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError('disk on fire')

    with pytest.raises(RuntimeError, match='disk on fire'):
        toy.make_dataset(tmp_path / 'toy', TINY, force=True, check=check)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ['toy']


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_nothing(tmp_path, signum):
    process, build = start_endless(tmp_path / 'toy')
    assert build.is_dir()
    process.send_signal(signum)
    _, message = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert signum.name in message
    assert 'Traceback' not in message
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_runs(tmp_path):
    out = tmp_path / 'toy'
    killed, leftover = start_endless(out)
    killed.kill()
    killed.communicate()
    live, live_build = start_endless(out)
    try:
        assert not leftover.exists()
        os.kill(live.pid, signal.SIGSTOP)
        # A second run to the same place finishes, and leaves the first one's folder alone.
        toy.make_dataset(out, TINY)
        assert live_build.is_dir()
        before = contents(out)
        # A run killed between the two renames left only the backup.
        out.rename(tmp_path / '.toy.old')
        with pytest.raises(FileExistsError, match='--force'):
            toy.make_dataset(out, TINY)
        assert contents(out) == before
    finally:
        os.kill(live.pid, signal.SIGCONT)
        live.send_signal(signal.SIGTERM)
        live.communicate(timeout=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['toy']
