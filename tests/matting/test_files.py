"""Images, alphas and trimaps are read exactly, and bad ones are refused by name."""

import re

import cv2
import numpy as np
import pytest
from PIL import Image

from sapa_mm.matting import UNKNOWN, read_alpha, read_image, read_trimap
from sapa_mm.matting.files import (
    check_same_size,
    check_unknown,
    images_by_stem,
    list_images,
    normalize_trimap,
)

READERS = [read_image, read_alpha, read_trimap]
RAMP = np.arange(0, 255, 17, dtype=np.uint8).reshape(3, 5)
TRIMAP = np.array([[0, 255, 128], [128, 0, 0]], np.uint8)


def save(path, pixels, mode=None):
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_an_image_is_bgr_as_in_its_rows_and_columns(tmp_path):
    rgb = np.zeros((2, 3, 3), np.uint8)
    rgb[1, 2] = 10, 20, 30
    got = read_image(save(tmp_path / 'a.png', rgb))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, rgb[..., ::-1])


@pytest.mark.parametrize('mode', ['L', 'P', 'RGB', 'RGBA', 'LA'])
def test_an_image_of_any_mode_gets_three_channels(tmp_path, mode):
    got = read_image(save(tmp_path / 'a.png', RAMP, mode))
    np.testing.assert_array_equal(got, np.repeat(RAMP[..., None], 3, axis=2))


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # rotate by 90 degrees clockwise
    rgb = np.zeros((16, 24, 3), np.uint8)
    rgb[:, :8] = 255
    Image.fromarray(rgb).save(tmp_path / 'a.jpg', exif=exif)
    got = read_image(tmp_path / 'a.jpg')
    assert got.shape == (24, 16, 3)
    assert (got[:8] > 200).all() and (got[8:] < 50).all()


def test_a_path_of_any_letters(tmp_path):
    path = tmp_path / 'Mähne_髪.png'
    path.write_bytes(cv2.imencode('.png', RAMP)[1].tobytes())
    np.testing.assert_array_equal(read_alpha(path), RAMP)
    np.testing.assert_array_equal(read_alpha(str(path)), RAMP)


@pytest.mark.parametrize('mode', ['L', 'P', 'RGB', 'RGBA', 'LA'])
def test_an_alpha_of_equal_channels_is_one_of_one_channel(tmp_path, mode):
    got = read_alpha(save(tmp_path / 'a.png', RAMP, mode))
    assert got.dtype == np.uint8 and got.flags.c_contiguous
    np.testing.assert_array_equal(got, RAMP)


@pytest.mark.parametrize('channel', [0, 1, 2])
def test_channels_that_differ_are_no_alpha(tmp_path, channel):
    pixels = np.repeat(RAMP[..., None], 3, axis=2)
    pixels[1, 1, channel] += 1
    save(tmp_path / 'a.png', pixels)
    for read in (read_alpha, read_trimap):
        with pytest.raises(ValueError, match=r"three that differ in '.*a\.png'; save it"):
            read(tmp_path / 'a.png')


def test_transparency_is_not_dropped_from_an_alpha(tmp_path):
    pixels = np.full((2, 3, 4), 255, np.uint8)
    pixels[0, 0, 3] = 254
    save(tmp_path / 'a.png', pixels)
    with pytest.raises(ValueError, match=r"transparency in '.*a\.png'"):
        read_alpha(tmp_path / 'a.png')
    assert read_image(tmp_path / 'a.png').shape == (2, 3, 3)


@pytest.mark.parametrize('read', READERS)
def test_files_that_are_none_are_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"got no '.*nothing\.png'"):
        read(tmp_path / 'nothing.png')
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        read(tmp_path)
    for content in (b'', b'this is no image'):
        (tmp_path / 'a.png').write_bytes(content)
        with pytest.raises(ValueError, match=r"other content in '.*a\.png'"):
            read(tmp_path / 'a.png')


@pytest.mark.parametrize('read', READERS)
@pytest.mark.parametrize('shape', [(3, 5), (3, 5, 3)])
def test_16_bits_are_refused(tmp_path, read, shape):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros(shape, np.uint16))
    with pytest.raises(ValueError, match=r"8 bits a channel, got uint16 in '.*a\.png'; convert"):
        read(tmp_path / 'a.png')
    cv2.imwrite(str(tmp_path / 'a.tif'), np.zeros((3, 5, 3), np.float32))
    with pytest.raises(ValueError, match=r'got float32 .*a\.tif'):
        read(tmp_path / 'a.tif')


@pytest.mark.parametrize('unknown', [85, 127, 128, 129, 170])
def test_unknown_pixels_become_128(tmp_path, unknown):
    given = np.where(TRIMAP == 128, unknown, TRIMAP).astype(np.uint8)
    kept = given.copy()
    got = read_trimap(save(tmp_path / 'a.png', given))
    assert got.dtype == np.uint8
    assert UNKNOWN == 128
    np.testing.assert_array_equal(got, TRIMAP)
    np.testing.assert_array_equal(normalize_trimap(given, 'a'), TRIMAP)
    np.testing.assert_array_equal(given, kept)


@pytest.mark.parametrize('bad', [1, 2, 84, 171, 254])
def test_values_of_no_known_meaning_are_refused(tmp_path, bad):
    given = TRIMAP.copy()
    given[0, 1] = given[1, 2] = bad
    save(tmp_path / 'a.png', given)
    with pytest.raises(ValueError, match=rf"got 2 pixels of {bad} in '.*a\.png'; map"):
        read_trimap(tmp_path / 'a.png')
    with pytest.raises(ValueError, match=r'got 12 pixels of 17, 34, 51, 68, 187, \.\.\. in'):
        normalize_trimap(np.concatenate([RAMP, RAMP[-1:], RAMP[-1:] * 0]), 'a.png')


def test_only_maps_of_8_bits_are_trimaps():
    for given in (TRIMAP[None], TRIMAP.astype(np.int64)):
        with pytest.raises(ValueError, match=r"\(H, W\) of uint8, got .* in 'a\.png'"):
            normalize_trimap(given, 'a.png')


def test_a_trimap_without_unknown_pixels_is_refused():
    check_unknown(TRIMAP, 'a.png')
    with pytest.raises(ValueError, match=r"unknown pixels \(128\), got none in 'a\.png'; mark"):
        check_unknown(np.where(TRIMAP == 128, 127, TRIMAP), 'a.png')


def test_images_of_other_sizes_are_named():
    image = np.zeros((2, 3, 3), np.uint8)
    check_same_size(img=image, alpha=image[..., 0])
    with pytest.raises(
        ValueError, match=r"got 2 x 3 of fg 'a\.jpg', 3 x 2 of alpha 'b\.png'; they have"
    ):
        check_same_size(**{"fg 'a.jpg'": image, "alpha 'b.png'": np.zeros((3, 2), np.uint8)})


def test_images_of_a_folder_are_sorted_and_nothing_else_counts(tmp_path):
    for name in ('b.JPG', 'a_2.png', 'a_10.tiff', 'notes.txt', '._a.png', 'noext'):
        (tmp_path / name).touch()
    (tmp_path / 'folder.png').mkdir()
    names = ['a_10.tiff', 'a_2.png', 'b.JPG']
    assert list_images(tmp_path, 'fg') == names
    stems = {name.partition('.')[0]: str(tmp_path / name) for name in names}
    assert list(images_by_stem(tmp_path, 'fg').items()) == list(stems.items())
    (tmp_path / 'b.png').touch()
    with pytest.raises(ValueError, match=r"fg: expected one.*'.*b\.JPG' and '.*b\.png'; remove"):
        images_by_stem(tmp_path, 'fg')


def test_folders_without_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fg: expected images \(\.png, .* in '.*', got"):
        list_images(tmp_path, 'fg')
    with pytest.raises(FileNotFoundError, match=r"bg: .* got no folder '.*nowhere'"):
        list_images(tmp_path / 'nowhere', 'bg')
