"""Images with depth maps: which are found, in which order, and what is said of missing ones."""

import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope
from mmseg.datasets import NYUDataset
from mmseg.registry import DATASETS

from sapa_mm.depth import DepthMapDataset

SIZE = (11, 15)


def write(root, *names, depth=True, suffix='.jpg'):
    """Write images, one darker than the next, and depth of 1 mm, 2 mm and so on."""
    for k, name in enumerate(names, 1):
        image, annotation = root / f'images/{name}{suffix}', root / f'annotations/{name}.png'
        for path in (image, annotation):
            path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), np.full((*SIZE, 3), 255 - k, np.uint8))
        if depth:
            cv2.imwrite(str(annotation), np.full(SIZE, k, np.uint16))


def make(root, kind=DepthMapDataset, **options):
    options = dict(data_prefix=dict(img_path='images', depth_map_path='annotations')) | options
    return kind(data_root=str(root), **options)


def stem(path, folder):
    return path.split(f'/{folder}/')[1].rsplit('.')[0]


def names(dataset):
    """The images' stems, which those of their depth maps have to equal."""
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    found = [stem(info['img_path'], 'images') for info in infos]
    assert found == [stem(info['depth_map_path'], 'annotations') for info in infos]
    return found


def test_images_are_sorted_and_have_their_own_depth(tmp_path):
    write(tmp_path, 'scene_2', 'scene_1', 'deep/er/scene_3')
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(
            dict(
                type='DepthMapDataset',
                data_root=str(tmp_path),
                data_prefix=dict(img_path='images', depth_map_path='annotations'),
                pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadDepthMap')],
            )
        )
    assert isinstance(dataset, NYUDataset)
    assert names(dataset) == ['deep/er/scene_3', 'scene_1', 'scene_2']
    for sample, k in zip(dataset, (3, 2, 1), strict=True):
        np.testing.assert_allclose(sample['gt_depth_map'], np.full(SIZE, k * 1e-3, np.float32))
        assert (sample['img'] == 255 - k).all()


def test_scenes_of_nyu_keep_their_index(tmp_path):
    write(tmp_path, 'kitchen_00045', 'bookstore_1', 'garden_1', 'garden', '00001')
    dataset = make(tmp_path)
    found = {name: dataset.get_data_info(i)['category_id'] for i, name in enumerate(names(dataset))}
    assert found == {
        'kitchen_00045': 6,
        'bookstore_1': 26,
        'garden_1': -1,
        'garden': -1,
        '00001': -1,
    }


def test_a_name_without_a_digit_in_a_folder_with_one(tmp_path):
    write(tmp_path, 'room1/view')
    assert make(tmp_path).get_data_info(0)['category_id'] == -1
    with pytest.raises(StopIteration):  # mmseg's own
        make(tmp_path, NYUDataset)


@pytest.mark.parametrize('absolute', [False, True])
def test_ann_file_chooses_images_in_its_order(tmp_path, absolute):
    write(tmp_path, *(f'scene_{k}' for k in range(5)), 'part/scene_7')
    (tmp_path / 'chosen.txt').write_text('scene_3.jpg\n\n  scene_1\npart/scene_7.jpg\n')
    ann_file = str(tmp_path / 'chosen.txt') if absolute else 'chosen.txt'
    assert names(make(tmp_path, ann_file=ann_file)) == ['scene_3', 'scene_1', 'part/scene_7']
    assert len(make(tmp_path, NYUDataset, ann_file=ann_file)) == 6  # mmseg's own ignores it


def test_ann_file_names_an_image_that_is_not_there(tmp_path):
    write(tmp_path, 'scene_1')
    (tmp_path / 'chosen.txt').write_text('scene_1\nscene_9.jpg\n')
    with pytest.raises(FileNotFoundError, match=r"^ann_file: .*'scene_9' in '.*chosen\.txt'"):
        make(tmp_path, ann_file='chosen.txt')


def test_missing_ann_file(tmp_path):
    write(tmp_path, 'scene_1')
    with pytest.raises(FileNotFoundError, match=r'none\.txt'):
        make(tmp_path, ann_file='none.txt')


def test_other_suffixes_and_a_folder_with_a_slash(tmp_path):
    write(tmp_path, 'scene_1', 'scene_2', suffix='.png')
    (tmp_path / 'chosen.txt').write_text('scene_2.png\n')
    dataset = make(
        tmp_path,
        ann_file='chosen.txt',
        img_suffix='.png',
        data_prefix=dict(img_path='images/', depth_map_path='annotations/'),
    )
    assert names(dataset) == ['scene_2']


def test_missing_depth_map_is_named_before_any_work(tmp_path):
    write(tmp_path, 'scene_1', 'scene_2')
    (tmp_path / 'annotations/scene_2.png').unlink()
    with pytest.raises(FileNotFoundError, match=r"scene_2\.jpg', got no '.*scene_2\.png'"):
        make(tmp_path)
    # One that no ann_file chooses may lack it.
    (tmp_path / 'chosen.txt').write_text('scene_1')
    assert names(make(tmp_path, ann_file='chosen.txt')) == ['scene_1']


def test_images_alone_need_no_depth(tmp_path):
    write(tmp_path, 'scene_1', depth=False)
    dataset = make(tmp_path, data_prefix=dict(img_path='images'))
    assert 'depth_map_path' not in dataset.get_data_info(0)


def test_folder_without_images(tmp_path):
    write(tmp_path, 'scene_1')
    with pytest.raises(FileNotFoundError, match=r"images '\*\.jpeg' in img_path, got none in "):
        make(tmp_path, img_suffix='.jpeg')


@pytest.mark.parametrize('prefix', ['nowhere', ''])
def test_no_folder(tmp_path, prefix):
    write(tmp_path, 'scene_1')
    root = tmp_path if prefix else tmp_path / 'empty'
    with pytest.raises(FileNotFoundError, match=r'^data_prefix: expected a folder of images'):
        make(root, data_prefix=dict(img_path=prefix, depth_map_path='annotations'))


def test_indices_and_laziness(tmp_path):
    write(tmp_path, *(f'scene_{k}' for k in range(4)))
    assert names(make(tmp_path, indices=2)) == ['scene_0', 'scene_1']
    lazy = make(tmp_path, lazy_init=True)
    lazy.full_init()
    assert len(lazy) == 4
