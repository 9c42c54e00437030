"""SUN RGB-D's data set on tiny images: labels from 1 on, and the trap of their numbering."""

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from sapa_mm.segmentation import SUNRGBDDataset

SIZES = ((4, 6), (5, 6), (3, 7))


def make(root, names, sizes=SIZES, first_label=0):
    """Images and label maps of these sizes, under these pairs of names."""
    for (image, labels), (height, width) in zip(names, sizes, strict=True):
        for room, name, array in (
            ('images', f'{image}.jpg', np.zeros((height, width, 3), np.uint8)),
            ('annotations', f'{labels}.png', None),
        ):
            if array is None:
                array = (np.arange(height * width) % 38 + first_label).astype(np.uint8)
                array = array.reshape(height, width)
            file = root / room / 'train' / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)


def dataset(root, **kwargs):
    init_default_scope('mmseg')
    return DATASETS.build(
        dict(
            type='SUNRGBDDataset',
            data_root=str(root),
            data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                dict(type='PackSegInputs'),
            ],
            **kwargs,
        )
    )


def test_labels_count_from_1_and_0_is_ignored(tmp_path):
    make(tmp_path, [('img-000001', 'img-000001')], sizes=[(2, 19)])
    labels = dataset(tmp_path)[0]['data_samples'].gt_sem_seg.data.flatten().tolist()
    assert labels == [255, *range(37)]


def test_classes_and_colours():
    classes, palette = (SUNRGBDDataset.METAINFO[key] for key in ('classes', 'palette'))
    assert len(set(classes)) == len(classes) == 37
    assert [classes[i] for i in (0, 1, 4, 27, 36)] == [
        'wall',
        'floor',
        'chair',
        'shower_curtain',
        'bag',
    ]
    # PASCAL VOC's: label 1 is dark red, 2 dark green, 15 and 20 as its own list has them.
    assert [palette[i - 1] for i in (1, 2, 15, 20)] == [
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]
    assert len({tuple(colour) for colour in palette}) == 37


def test_pairs_of_the_archives_numbers(tmp_path):
    # The label map of training image 1 has the number 3 in the archive, that of test image 1 is 1.
    make(tmp_path, [('1', '3'), ('2', '1'), ('3', '2')])
    with pytest.raises(ValueError, match=r"\(4, 6\).*1\.jpg'.* got \(5, 6\).*1\.png'.*5,051"):
        dataset(tmp_path)


def test_partners_are_named(tmp_path):
    make(tmp_path, [('1', '3'), ('2', '4'), ('5', '5')])
    with pytest.raises(
        FileNotFoundError, match=r"no label map '.*annotations/train/1\.png' and 1 more$"
    ):
        dataset(tmp_path)
    make(tmp_path, [('1', '1'), ('2', '2')], sizes=SIZES[:2])
    with pytest.raises(FileNotFoundError, match=r"no image '.*images/train/3\.jpg' and 1 more$"):
        dataset(tmp_path)
