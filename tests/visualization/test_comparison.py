import numpy as np
import pytest
from PIL import Image

from sapa_mm.visualization import draw_pictures, draw_segmentations

CLASSES, PALETTE = ('sky', 'tree', 'cat'), ((10, 200, 30), (250, 0, 90), (0, 0, 255))


def colours(path):
    pixels = np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3)
    return {tuple(map(int, colour)) for colour in np.unique(pixels, axis=0)}


def test_every_class_has_its_colour(tmp_path):
    path = tmp_path / 'out.png'
    image = np.full((8, 12, 3), (70, 80, 90), np.uint8)
    truth = np.zeros((8, 12), np.uint8)
    truth[:, 6:] = 1
    draw_segmentations(path, [image], {'truth': [truth]}, CLASSES, PALETTE)
    seen = colours(path)
    assert {(70, 80, 90), PALETTE[0], PALETTE[1]} <= seen
    assert PALETTE[2] not in seen  # neither drawn nor in the legend


def test_ignored_pixels_are_white(tmp_path):
    path = tmp_path / 'out.png'
    image = np.zeros((8, 8, 3), np.uint8)
    maps = {'truth': [np.full((8, 8), 255, np.uint8)], 'guess': [np.full((8, 8), 2, np.uint8)]}
    draw_segmentations(path, [image], maps, CLASSES, PALETTE)
    picture = np.asarray(Image.open(path).convert('RGB'))
    middle = picture[picture.shape[0] // 3]
    assert (middle[middle.shape[0] // 2] == 255).all()
    assert PALETTE[2] in colours(path)


@pytest.mark.parametrize(
    ('segmentations', 'palette', 'message'),
    [
        (
            {'truth': []},
            PALETTE,
            r"segmentations\['truth'\]: expected sizes \[\(8, 8\)\], got \[\]",
        ),
        ({'truth': [np.zeros((4, 8), np.uint8)]}, PALETTE, r'expected sizes .*\(4, 8\)'),
        (
            {'truth': [np.zeros((8, 8), np.uint8)]},
            PALETTE[:2],
            'palette: expected 3 colours, got 2',
        ),
    ],
)
def test_bad_input_leaves_no_file(tmp_path, segmentations, palette, message):
    path = tmp_path / 'out.png'
    with pytest.raises(ValueError, match=message):
        draw_segmentations(path, [np.zeros((8, 8, 3), np.uint8)], segmentations, CLASSES, palette)
    assert not path.exists()


def test_pictures_side_by_side(tmp_path):
    red, blue = (np.full((16, 16, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    draw_pictures(
        tmp_path / 'a.png', {'one': [red, blue], 'two': [blue, blue], 'three': [red, red]}
    )
    picture = np.asarray(Image.open(tmp_path / 'a.png').convert('RGB'))
    assert picture.shape[1] / picture.shape[0] == pytest.approx(3 / 2, rel=0.1)
    for row, colours in zip(np.array_split(picture, 2), ((0, 2, 0), (2, 2, 0)), strict=True):
        for part, channel in zip(np.array_split(row, 3, axis=1), colours, strict=True):
            full = (part == 255 * np.eye(3, dtype=int)[channel]).all(axis=2)
            assert full.mean() > 0.5


@pytest.mark.parametrize('columns', [{}, {'one': []}, {'one': [0], 'two': [0, 0]}])
def test_columns_of_different_lengths(tmp_path, columns):
    with pytest.raises(ValueError, match='columns: '):
        draw_pictures(tmp_path / 'a.png', columns)
    assert not list(tmp_path.iterdir())
