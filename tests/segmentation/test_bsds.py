"""BSDS500's layout and files: all annotators, any number of segments, and float Lab."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from scipy.io import savemat
from skimage.color import rgb2lab

from sapa_mm.segmentation import BSDS500Dataset, ConvertToLab, LoadBSDSAnnotations

SIZE = (11, 15)


def cells(*maps):
    """The published structure: a row of cells, each with a map and its boundaries."""
    table = np.empty((1, len(maps)), object)
    kind = [('Segmentation', object), ('Boundaries', object)]
    for k, segments in enumerate(maps):
        table[0, k] = np.empty((1, 1), kind)
        table[0, k]['Segmentation'][0, 0] = segments
        table[0, k]['Boundaries'][0, 0] = np.zeros(segments.shape, np.uint8)
    return table


def write_mat(path, *maps):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, dict(groundTruth=cells(*maps)))
    return str(path)


def halves(size=SIZE, first=1):
    """Two segments, side by side, as the first annotator's."""
    segments = np.full(size, first, np.uint16)
    segments[:, size[1] // 2 :] = first + 1
    return segments


def counted(count, size):
    """Segments from 1 on, as many as asked, in the order of pixels."""
    return (np.arange(size[0] * size[1]) % count + 1).reshape(size).astype(np.uint16)


def write_image(root, name, split='train', size=SIZE, maps=None):
    path = root / f'images/{split}/{name}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), (10, 100, 200), np.uint8))
    if maps is None:
        maps = halves(size), counted(3, size), counted(7, size)
    if maps:
        write_mat(root / f'groundTruth/{split}/{name}.mat', *maps)


def load(path, annotator, size=SIZE):
    transform = LoadBSDSAnnotations(annotator)
    return transform(dict(seg_map_path=path, ori_shape=size, img_path='image.jpg', seg_fields=[]))


def stems(dataset):
    found = [dataset.get_data_info(i) for i in range(len(dataset))]
    names = [info['img_path'].rsplit('/')[-1].removesuffix('.jpg') for info in found]
    assert [info['seg_map_path'].rsplit('/')[-1] for info in found] == [f'{n}.mat' for n in names]
    return names


def test_layout(tmp_path):
    for name in ('8049', '100007', '376086'):
        write_image(tmp_path, name)
    write_image(tmp_path, '3063', 'test')
    train = BSDS500Dataset(data_root=str(tmp_path))
    assert stems(train) == ['100007', '376086', '8049']
    assert train.metainfo['classes'] == ('segment',)
    prefix = dict(img_path='images/test', seg_map_path='groundTruth/test')
    with DefaultScope.overwrite_default_scope('mmseg'):
        test = DATASETS.build(
            dict(
                type='BSDS500Dataset',
                data_root=str(tmp_path),
                data_prefix=prefix,
                test_mode=True,
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='LoadBSDSAnnotations', annotator=1),
                ],
            )
        )
    assert stems(test) == ['3063']
    np.testing.assert_array_equal(test[0]['gt_seg_map'], counted(3, SIZE) - 1)
    (tmp_path / 'some.txt').write_text('8049\n100007\n')
    assert stems(BSDS500Dataset('some.txt', data_root=str(tmp_path))) == ['8049', '100007']
    assert stems(BSDS500Dataset(data_root=str(tmp_path), indices=2)) == ['100007', '376086']


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"img_path, got '.*images/train'"):
        BSDS500Dataset(data_root=str(tmp_path))
    (tmp_path / 'images/train').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"'\*\.jpg' in img_path, got none"):
        BSDS500Dataset(data_root=str(tmp_path))
    write_image(tmp_path, '1')
    write_image(tmp_path, '2', maps=())
    with pytest.raises(FileNotFoundError, match=r"images/train/2\.jpg'.*groundTruth/train/2\.mat"):
        BSDS500Dataset(data_root=str(tmp_path))
    (tmp_path / 'some.txt').write_text('1\n3\n')
    with pytest.raises(FileNotFoundError, match=r'ann_file.*images/train/3\.jpg'):
        BSDS500Dataset('some.txt', data_root=str(tmp_path))
    # Images alone are fine where nothing asks for segments.
    assert len(BSDS500Dataset(data_root=str(tmp_path), data_prefix=dict(img_path='images/train')))


def test_one_annotator(tmp_path):
    maps = halves(first=5), counted(3, SIZE), counted(7, SIZE)
    path = write_mat(tmp_path / 'a.mat', *maps)
    for k, first in enumerate((5, 1, 1)):
        got = load(path, k)
        assert got['gt_seg_map'].dtype == np.int32
        np.testing.assert_array_equal(got['gt_seg_map'], maps[k].astype(int) - first)
        assert got['seg_fields'] == ['gt_seg_map']
        assert 'annotations' not in got


def test_all_annotators(tmp_path):
    maps = halves(), counted(3, SIZE), counted(7, SIZE)
    got = load(write_mat(tmp_path / 'a.mat', *maps), 'all')
    assert got['annotations'].shape == (3, *SIZE)
    assert got['annotations'].dtype == np.int32
    np.testing.assert_array_equal(got['annotations'], np.stack(maps).astype(int) - 1)
    np.testing.assert_array_equal(got['gt_seg_map'], maps[0].astype(int) - 1)
    got['gt_seg_map'][:] = 99
    assert got['annotations'].max() == 6
    assert got['seg_fields'] == ['gt_seg_map']


def test_a_random_annotator_follows_numpys_seed(tmp_path):
    path = write_mat(tmp_path / 'a.mat', *(counted(k, SIZE) for k in (2, 3, 4, 5)))

    def draw(seed, times=60):
        np.random.seed(seed)  # noqa: NPY002
        return [int(load(path, 'random')['gt_seg_map'].max()) for _ in range(times)]

    first = draw(0)
    assert draw(0) == first
    assert draw(1) != first
    assert set(first) == {1, 2, 3, 4}


@pytest.mark.parametrize('count', [255, 256, 257, 700])
def test_hundreds_of_segments_keep_their_own_numbers(tmp_path, count):
    """The number 255 is ignored by mmseg, and 8 bits hold no more than 256."""
    size = (30, 40)
    given = counted(count, size)
    got = load(write_mat(tmp_path / 'a.mat', given), 0, size)['gt_seg_map']
    expected = np.array([n for n in range(count + 1) if n != 255][:count])
    np.testing.assert_array_equal(got, expected[given.astype(int) - 1])
    assert 255 not in got
    assert len(np.unique(got)) == count


def test_numbers_with_gaps_and_beyond_16_bits(tmp_path):
    given = np.array([[70000, 70000, 9], [3, 3, 9]], np.int32)
    got = load(write_mat(tmp_path / 'a.mat', given), 0, given.shape)['gt_seg_map']
    np.testing.assert_array_equal(got, [[2, 2, 1], [0, 0, 1]])


def test_segments_follow_the_training_transforms(tmp_path):
    """Crops, flips and padding keep the numbers, and what is padded is ignored."""
    size = (40, 60)
    write_image(tmp_path, '1', size=size, maps=[counted(300, size)])
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadBSDSAnnotations'),
        dict(type='RandomCrop', crop_size=(24, 32)),
        dict(type='RandomFlip', prob=1.0),
        dict(type='ConvertToLab'),
        dict(type='PackSegInputs'),
    ]
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = BSDS500Dataset(data_root=str(tmp_path), pipeline=pipeline)
        preprocessor = dict(type='SegDataPreProcessor', size=(25, 32), seg_pad_val=255)
        batch = MODELS.build(preprocessor)(pseudo_collate([dataset[0]]), training=True)
    assert batch['inputs'].dtype == torch.float32
    segments = batch['data_samples'][0].gt_sem_seg.data
    assert segments.dtype == torch.int64
    assert (segments[0, 24] == 255).all()
    inside = segments[0, :24].flip(1).numpy()
    numbers = np.arange(301)[np.arange(301) != 255]
    full = numbers[counted(300, size).astype(int) - 1]
    windows = np.lib.stride_tricks.sliding_window_view(full, (24, 32))
    assert (windows == inside).all((2, 3)).any()


def test_all_annotations_are_packed(tmp_path):
    write_image(tmp_path, '1')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadBSDSAnnotations', annotator='all'),
        dict(type='ConvertToLab'),
        dict(type='PackSegInputs', meta_keys=('img_path', 'ori_shape', 'annotations')),
    ]
    with DefaultScope.overwrite_default_scope('mmseg'):
        sample = BSDS500Dataset(data_root=str(tmp_path), pipeline=pipeline)[0]['data_samples']
    assert sample.annotations.shape == (3, *SIZE)
    assert sample.to_dict()['annotations'].max() == 6
    assert sample.gt_sem_seg.data.max() == 1


def test_an_image_without_truth_passes():
    results = dict(img=np.zeros((2, 3, 3), np.uint8))
    assert LoadBSDSAnnotations('all')(dict(results)).keys() == results.keys()


def test_bad_files_are_named(tmp_path):
    path = tmp_path / 'a.mat'
    savemat(path, dict(labels=np.ones(SIZE)))
    with pytest.raises(ValueError, match=r"'groundTruth' in '.*a\.mat', got labels"):
        load(str(path), 0)
    path.write_text('no such thing')
    with pytest.raises(ValueError, match=r"expected a \.mat file, got '.*a\.mat'"):
        load(str(path), 0)
    path.write_bytes(b'')
    with pytest.raises(ValueError, match=r"expected a \.mat file, got '.*a\.mat'"):
        load(str(path), 0)
    savemat(path, dict(groundTruth=np.ones(SIZE)))
    with pytest.raises(ValueError, match=r"'Segmentation' in every cell.*a\.mat"):
        load(str(path), 0)
    savemat(path, dict(groundTruth=np.empty((1, 0), object)))
    with pytest.raises(ValueError, match=r'got none in .*a\.mat'):
        load(str(path), 0)
    write_mat(path, np.ones(SIZE))
    with pytest.raises(ValueError, match=r'integers, got float64 .*a\.mat'):
        load(str(path), 0)
    with pytest.raises(FileNotFoundError, match=r'b\.mat'):
        load(str(tmp_path / 'b.mat'), 0)


@pytest.mark.parametrize('annotator', ['all', 'random', 0])
def test_segments_of_another_size(tmp_path, annotator):
    path = write_mat(tmp_path / 'a.mat', halves(), halves(SIZE[::-1]))
    with pytest.raises(ValueError, match=r'11 x 15 .*image\.jpg.*15 x 11 from annotator 1 of.*mat'):
        load(path, annotator)


def test_annotators_that_are_not_there(tmp_path):
    path = write_mat(tmp_path / 'a.mat', halves(), halves())
    with pytest.raises(ValueError, match=r'annotator.*the 2 in .*a\.mat.*0 to 1, got 2'):
        load(path, 2)
    for wrong in ('first', '', -1):
        with pytest.raises(ValueError, match=f'annotator.*{wrong}'):
            LoadBSDSAnnotations(wrong)
    for wrong in (True, 1.0, None):
        with pytest.raises(TypeError, match=f'annotator.*{wrong}'):
            LoadBSDSAnnotations(wrong)


def test_lab_of_known_colours():
    """Values of CIELAB for sRGB and D65, from its definition."""
    colours = np.array([[[255, 255, 255], [0, 0, 0], [0, 0, 255], [255, 0, 0]]], np.uint8)
    got = ConvertToLab()(dict(img=colours))['img']
    assert got.dtype == np.float32
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(got[0], expected, atol=0.05)


def test_lab_of_noise():
    image = np.random.default_rng(0).integers(0, 256, (17, 23, 3)).astype(np.uint8)
    given = image.copy()
    transform = TRANSFORMS.build(dict(type='ConvertToLab'))
    got = transform(dict(img=given))['img']
    np.testing.assert_array_equal(given, image)
    np.testing.assert_allclose(got, rgb2lab(image[..., ::-1].astype(float) / 255), atol=1e-3)
    view = np.repeat(image, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(transform(dict(img=view))['img'], got)


def test_lab_refuses_other_images():
    with pytest.raises(TypeError, match=r'img.*uint8.*float32'):
        ConvertToLab()(dict(img=np.zeros((4, 4, 3), np.float32)))
    for shape in ((4, 4), (4, 4, 1)):
        with pytest.raises(ValueError, match=r'img.*\(H, W, 3\)'):
            ConvertToLab()(dict(img=np.zeros(shape, np.uint8)))
