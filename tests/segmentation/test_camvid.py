"""CamVid's data set on tiny images: which labels come out, and what is said of missing files."""

import pytest
from mmengine.registry import DATASETS, init_default_scope
from testing_camvid import make_pair

from sapa_mm.segmentation import CamVidDataset

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]


def dataset(root, **kwargs):
    init_default_scope('mmseg')
    return DATASETS.build(
        dict(
            type='CamVidDataset',
            data_root=str(root),
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            pipeline=PIPELINE,
            **kwargs,
        )
    )


@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
def test_labels(tmp_path, suffix):
    for name in ('0016E5_00420', '0001TP_006690'):
        make_pair(tmp_path, name, suffix)
    data = dataset(tmp_path)
    assert len(data) == 2
    sample = data[0]['data_samples']
    assert sample.img_path.endswith(f'0001TP_006690{suffix}')
    assert sample.seg_map_path.endswith('annotations/training/0001TP_006690.png')
    labels = sample.gt_sem_seg.data
    assert labels.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 255]]]


def test_classes_and_colours():
    classes, palette = (CamVidDataset.METAINFO[key] for key in ('classes', 'palette'))
    assert len(classes) == len(palette) == 11
    assert dict(zip(classes, palette, strict=True)) == {
        'sky': [128, 128, 128],
        'building': [128, 0, 0],
        'pole': [192, 192, 128],
        'road': [128, 64, 128],
        'pavement': [60, 40, 222],
        'tree': [128, 128, 0],
        'sign': [192, 128, 128],
        'fence': [64, 64, 128],
        'car': [64, 0, 128],
        'pedestrian': [64, 64, 0],
        'bicyclist': [0, 128, 192],
    }


def test_some_classes_alone(tmp_path):
    make_pair(tmp_path, 'a')
    data = dataset(tmp_path, metainfo=dict(classes=('car', 'sky')))
    labels = data[0]['data_samples'].gt_sem_seg.data.flatten().tolist()
    assert labels == [1] + 7 * [255] + [0] + 3 * [255]
    assert data.metainfo['palette'] == [[64, 0, 128], [128, 128, 128]]


def test_without_labels(tmp_path):
    make_pair(tmp_path, 'a')
    init_default_scope('mmseg')
    data = CamVidDataset(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images/training'),
        pipeline=[PIPELINE[0], PIPELINE[2]],
    )
    assert data[0]['inputs'].shape == (3, 3, 4)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"img_path, got '.*images/training'"):
        dataset(tmp_path)
    make_pair(tmp_path, 'a')
    make_pair(tmp_path, 'b')
    labels = tmp_path / 'annotations/training/b.png'
    labels.rename(tmp_path / 'kept.png')
    with pytest.raises(FileNotFoundError, match=r"no label map '.*annotations/training/b\.png'$"):
        dataset(tmp_path)
    make_pair(tmp_path, 'c')
    for name in 'abc':
        (tmp_path / f'images/training/{name}.png').unlink()
    with pytest.raises(FileNotFoundError, match=r"files '\*\.jpg, .*png' in img_path, got none"):
        dataset(tmp_path)
    make_pair(tmp_path, 'b')
    with pytest.raises(FileNotFoundError, match=r"no image '.*images/training/a\.png' and 1 more$"):
        dataset(tmp_path)
    for file in (tmp_path / 'annotations/training').iterdir():
        file.unlink()
    (tmp_path / 'annotations/training').rmdir()
    with pytest.raises(FileNotFoundError, match=r"seg_map_path, got '.*annotations/training'"):
        dataset(tmp_path)


def test_images_of_two_suffixes(tmp_path):
    make_pair(tmp_path, 'a', '.png')
    make_pair(tmp_path, 'b', '.jpg')
    with pytest.raises(ValueError, match=r'img_suffix: .*\.jpg, \.png are there'):
        dataset(tmp_path)
    (tmp_path / 'annotations/training/b.png').unlink()
    assert len(dataset(tmp_path, img_suffix='.png')) == 1
