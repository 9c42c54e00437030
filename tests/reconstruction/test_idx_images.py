"""IDX files are read to the byte, and damaged ones are refused by name."""

import gzip

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS

from sapa_mm.reconstruction import IdxImages
from sapa_mm.reconstruction.idx_images import read_idx_images

PLAIN = 'train-images-idx3-ubyte'


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_reads_rows_and_columns_in_order(tmp_path, write_idx, suffix):
    images = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    read = read_idx_images(write_idx(tmp_path / f'images{suffix}', images))
    assert read.dtype == torch.uint8
    assert read.tolist() == images.tolist()


def test_gives_float_images_from_0_to_1(tmp_path, write_idx):
    images = np.array([[[0, 255], [51, 102]], [[255, 0], [0, 0]]], np.uint8)
    write_idx(tmp_path / PLAIN, images)
    dataset = DATASETS.build(dict(type='IdxImages', data_root=str(tmp_path), size=2))
    assert len(dataset) == 2
    image = dataset[0]['inputs']
    assert image.dtype == torch.float32
    assert image.shape == (1, 2, 2)
    torch.testing.assert_close(image[0], torch.tensor([[0.0, 1.0], [0.2, 0.4]]))


def test_resizes_bilinearly(tmp_path, write_idx):
    write_idx(tmp_path / PLAIN, np.array([[[0, 200], [0, 200]]], np.uint8))
    image = IdxImages(tmp_path, size=4)[0]['inputs']
    # It would be 100 halfway between two pixels' centers: these four lie a quarter beside it.
    torch.testing.assert_close(image * 255, torch.tensor([0.0, 50, 150, 200]).expand(1, 4, 4))


def test_28_pixels_become_32_without_a_border(tmp_path, write_idx):
    # There is more than one chunk to resize, whose images must stay in order.
    images = np.full((4097, 28, 28), 255, np.uint8)
    images[-1] = 10
    write_idx(tmp_path / PLAIN, images)
    dataset = IdxImages(tmp_path)
    assert dataset.images.shape == (4097, 1, 32, 32)
    assert (dataset.images[:-1] == 255).all()
    assert (dataset.images[-1] == 10).all()


def test_splits_are_the_published_files(data_root, draw_images):
    train, test = (IdxImages(data_root, split, size=28) for split in ('train', 'test'))
    assert train.images.squeeze(1).tolist() == draw_images(20).tolist()
    assert test.images.squeeze(1).tolist() == draw_images(12, seed=1).tolist()


def test_a_plain_file_comes_before_a_compressed_one(data_root, write_idx, draw_images):
    write_idx(data_root / PLAIN, draw_images(3))
    assert len(IdxImages(data_root)) == 3


def test_the_first_images(data_root, draw_images):
    dataset = IdxImages(data_root, size=28, num_images=5)
    assert dataset.images.squeeze(1).tolist() == draw_images(20)[:5].tolist()
    with pytest.raises(ValueError, match=r'num_images: expected at most the 20 of .*, got 21'):
        IdxImages(data_root, num_images=21)


def test_missing_files_say_where_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'data_root: .*dataset-fashion-mnist') as caught:
        IdxImages(tmp_path, 'test')
    assert str(tmp_path / 't10k-images-idx3-ubyte') in str(caught.value)


@pytest.mark.parametrize(
    ('header', 'message'),
    [
        (dict(magic=0x801), 'expected magic 00000803 .* got 00000801'),
        (dict(magic=0xD03), 'got 00000d03'),
        (dict(count=3), 'expected 3 images of 4 x 6, 72 bytes, got 48 bytes'),
        (dict(count=1), 'expected 1 images of 4 x 6, 24 bytes, got 48 bytes'),
        (dict(count=0), r'at least 1, got \[0, 4, 6\]'),
    ],
)
def test_headers_that_do_not_fit(tmp_path, write_idx, header, message):
    path = write_idx(tmp_path / 'images.gz', np.zeros((2, 4, 6), np.uint8), **header)
    with pytest.raises(ValueError, match=f'images.gz: .*{message}'):
        read_idx_images(path)


@pytest.mark.parametrize(
    ('cut', 'message'),
    [(-1, '48 bytes, got 47 bytes'), (10, 'a header of 16 bytes, got 10'), (0, 'got 0')],
)
def test_truncated_files(tmp_path, write_idx, cut, message):
    path = write_idx(tmp_path / 'images', np.zeros((2, 4, 6), np.uint8))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=f'images: .*{message}'):
        read_idx_images(path)


def damage(data: bytes) -> bytes:
    """Another byte in the middle of the compressed stream."""
    return (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0xFF]) + data[len(data) // 2 + 1 :]
    )


@pytest.mark.parametrize(
    'change', [lambda data: data[:-12], gzip.decompress, damage], ids=['cut', 'plain', 'damaged']
)
def test_damaged_gzip(tmp_path, write_idx, change):
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28), np.uint8)
    path = write_idx(tmp_path / 'images.gz', images)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r'images\.gz: expected a gzip file that is whole'):
        read_idx_images(path)


def test_bad_arguments(data_root):
    with pytest.raises(ValueError, match="split: expected one of train, test, got 'val'"):
        IdxImages(data_root, 'val')
    with pytest.raises(ValueError, match=r'size: .*got 0'):
        IdxImages(data_root, size=0)
    with pytest.raises(TypeError, match=r"size: .*got '32'"):
        IdxImages(data_root, size='32')
    with pytest.raises(TypeError, match=r'num_images: .*got 2\.0'):
        IdxImages(data_root, num_images=2.0)
