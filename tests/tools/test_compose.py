"""Merged test sets are those of the published script, pixel by pixel."""

import math
import re

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image

from sapa_mm.tools import compose
from sapa_mm.tools.cli import main as sapa_mm


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folders(tmp_path):
    """Two foregrounds of 12 x 17 and 9 x 9 pixels, and six backgrounds of other sizes."""
    for k, (name, size) in enumerate([('leaf', (12, 17)), ('net_3', (9, 9))]):
        save(tmp_path / 'fg' / f'{name}.png', noise(*size, 3, seed=k))
        alpha = noise(*size, seed=10 + k)
        alpha[0, :3], alpha[1] = 0, 255
        save(tmp_path / 'alpha' / f'{name}.png', alpha)
    for k, size in enumerate([(20, 30), (5, 40), (40, 5), (12, 17), (7, 8), (11, 13)]):
        save(tmp_path / 'bg' / f'b{k}.png', noise(*size, 3, seed=20 + k))
    return tmp_path


def run(folder, *options, per=3):
    paths = [folder / name for name in ('fg', 'alpha', 'bg')]
    arguments = [*paths, '--out', folder / 'out', '--per-foreground', per, *options]
    return sapa_mm(['compose', *map(str, arguments)])


def refused(capsys, folder, *options, per=3):
    """The message of a mistake, which leaves nothing behind."""
    before = sorted(folder.rglob('*'))
    with pytest.raises(SystemExit) as stop:
        run(folder, *options, per=per)
    assert stop.value.code == 2
    assert sorted(folder.rglob('*')) == before
    usage, _, message = capsys.readouterr().err.partition('sapa-mm compose: error: ')
    assert usage.startswith('usage: sapa-mm compose ')
    return message


def pixels(path):
    return np.asarray(Image.open(path))


def merged_by_hand(folder, name, background):
    """The published rule, a pixel and a channel after the other."""
    fg, alpha = pixels(folder / 'fg' / f'{name}.png'), pixels(folder / 'alpha' / f'{name}.png')
    behind = Image.open(folder / 'bg' / background)
    height, width = alpha.shape
    ratio = max(width / behind.width, height / behind.height)
    if ratio > 1:
        size = math.ceil(behind.width * ratio), math.ceil(behind.height * ratio)
        behind = behind.resize(size, Image.Resampling.BICUBIC)
    behind = np.asarray(behind)
    result = np.zeros_like(fg)
    for y, x, channel in np.ndindex(fg.shape):
        a = int(alpha[y, x]) / 255
        result[y, x, channel] = int(
            a * int(fg[y, x, channel]) + (1 - a) * int(behind[y, x, channel])
        )
    return result


def test_each_foreground_takes_the_next_backgrounds(folders, capsys):
    assert run(folders) == 0
    merged = folders / 'out' / 'merged'
    assert capsys.readouterr().out.splitlines()[-1] == f'{merged}: 6 images of 2 foregrounds'
    expected = {f'leaf_{k}.png': ('leaf', f'b{k}.png') for k in range(3)}
    expected |= {f'net_3_{k}.png': ('net_3', f'b{k + 3}.png') for k in range(3)}
    assert {path.name for path in merged.iterdir()} == set(expected)
    for name, (foreground, background) in expected.items():
        got = pixels(merged / name)
        np.testing.assert_array_equal(got, merged_by_hand(folders, foreground, background))
    for name in ('leaf.png', 'net_3.png'):
        copy = folders / 'out' / 'alpha' / name
        assert copy.read_bytes() == (folders / 'alpha' / name).read_bytes()
    assert len(list(folders.joinpath('out').rglob('*'))) == 10


def test_the_data_set_reads_the_result(folders):
    run(folders)
    out = folders / 'out'
    for path in (out / 'merged').iterdir():
        trimap = np.full(pixels(path).shape[:2], 127, np.uint8)
        save(out / 'trimaps' / path.name, trimap)
    config = dict(
        type='CompositionDataset',
        data_root=str(out),
        data_prefix=dict(img='merged', alpha='alpha', trimap='trimaps'),
        test_mode=True,
        pipeline=[dict(type='LoadComposition'), dict(type='PackMatting')],
    )
    dataset = DATASETS.build(config)
    assert len(dataset) == 6
    sizes = [tuple(dataset[i]['inputs'].shape) for i in range(6)]
    assert sizes == [(3, 12, 17)] * 3 + [(3, 9, 9)] * 3


def test_a_pixel_is_rounded_down():
    """0.2 * 201 + 0.8 * 13 is 50.6."""
    image = np.full((2, 3, 3), 201, np.uint8)
    background = Image.fromarray(np.full((2, 3, 3), 13, np.uint8))
    got = compose.compose(image, np.full((2, 3), 51, np.uint8), background)
    assert got.mode == 'RGB' and np.unique(got).tolist() == [50]


def test_a_large_background_is_cut_at_its_top_left():
    behind = noise(9, 11, 3)
    got = compose.compose(
        noise(4, 5, 3, seed=1), np.zeros((4, 5), np.uint8), Image.fromarray(behind)
    )
    np.testing.assert_array_equal(got, behind[:4, :5])


@pytest.mark.parametrize('size, enlarged', [((3, 40), (10, 134)), ((40, 3), (134, 10))])
def test_a_background_is_enlarged_by_the_larger_ratio_and_rounded_up(size, enlarged):
    """One side is too short: both are multiplied by 10 / 3, and 133.3 becomes 134."""
    behind = Image.fromarray(noise(*size, 3))
    got = compose.compose(noise(10, 10, 3), np.zeros((10, 10), np.uint8), behind)
    expected = np.asarray(behind.resize(enlarged[::-1], Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(got, expected[:10, :10])


def test_lists_give_the_order(folders):
    (folders / 'fg.txt').write_text('net_3\nleaf.png\n')
    (folders / 'bg.txt').write_text('b5\r\nb0.png\r\n\r\nb2\r\n  b1 \r\n')
    names = ('--fg-names', folders / 'fg.txt', '--bg-names', folders / 'bg.txt')
    assert run(folders, *names, per=2) == 0
    order = [('net_3_0', 'b5'), ('net_3_1', 'b0'), ('leaf_0', 'b2'), ('leaf_1', 'b1')]
    assert len(list((folders / 'out' / 'merged').iterdir())) == 4
    for name, background in order:
        expected = merged_by_hand(folders, name[:-2], f'{background}.png')
        np.testing.assert_array_equal(pixels(folders / 'out' / 'merged' / f'{name}.png'), expected)


def test_a_list_may_name_some_alone(folders):
    (folders / 'fg.txt').write_text('net_3')
    (folders / 'alpha' / 'leaf.png').unlink()
    assert run(folders, '--fg-names', folders / 'fg.txt', per=6) == 0
    assert len(list((folders / 'out' / 'merged').iterdir())) == 6
    assert [path.name for path in (folders / 'out' / 'alpha').iterdir()] == ['net_3.png']


@pytest.mark.parametrize(
    'text, message',
    [
        ('leaf\nroot\n', "expected one image 'root' in '.*fg', got none"),
        ('leaf\nnet_3\nleaf.png\n', "every name once, got 'leaf' again"),
        ('\n \n', 'expected a name a line, got none'),
        ('twice\n', "one image 'twice' in '.*', got twice.jpg and twice.png"),
        (None, r'fg\.txt: expected a text file of names'),
    ],
)
def test_bad_lists_are_refused(folders, capsys, text, message):
    if text is not None:
        (folders / 'fg.txt').write_text(text)
    if text and 'twice' in text:
        for suffix in ('jpg', 'png'):
            save(folders / 'fg' / f'twice.{suffix}', noise(4, 4, 3))
    got = refused(capsys, folders, '--fg-names', folders / 'fg.txt', per=1)
    assert re.search(message, got), got


def test_too_few_backgrounds_are_counted(folders, capsys):
    assert 'at least 8 backgrounds, 4 for each of 2 foregrounds, got 6' in refused(
        capsys, folders, per=4
    )
    (folders / 'bg.txt').write_text('b0\nb1')
    message = refused(capsys, folders, '--bg-names', folders / 'bg.txt', per=3)
    assert 'at least 6 backgrounds' in message and 'got 2' in message


def test_a_missing_alpha_is_named(folders, capsys):
    (folders / 'alpha' / 'net_3.png').unlink()
    message = refused(capsys, folders)
    assert re.search(r"an alpha 'net_3' .* for '.*net_3\.png', got none in '.*alpha'", message)


def test_unequal_sizes_are_named(folders, capsys):
    save(folders / 'alpha' / 'net_3.png', noise(9, 10))
    message = refused(capsys, folders)
    assert re.search(r"9 x 9 of fg '.*net_3\.png', 9 x 10 of alpha '.*net_3\.png'", message)


@pytest.mark.parametrize('folder', ['fg', 'alpha', 'bg'])
def test_bad_files_are_named_before_any_work(folders, capsys, folder):
    path = folders / folder / ('b5.png' if folder == 'bg' else 'net_3.png')
    path.write_bytes(b'no image')
    assert str(path) in refused(capsys, folders)
    cv2.imwrite(str(path), np.zeros((9, 9), np.uint16))
    message = refused(capsys, folders)
    assert '8 bits a channel' in message and str(path) in message
    for old in (folders / folder).iterdir():
        old.unlink()
    assert re.search(
        f"{folder.upper()}: expected images .*{folder}', got none", refused(capsys, folders)
    )


def test_a_damaged_background_leaves_no_half_of_an_image(folders, capsys):
    path = folders / 'bg' / 'b4.png'
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SystemExit):
        run(folders)
    assert re.search(r"BG: expected an image, got '.*b4\.png'", capsys.readouterr().err)
    merged = folders / 'out' / 'merged'
    assert sorted(path.name for path in merged.iterdir()) == [
        *(f'leaf_{k}.png' for k in range(3)),
        'net_3_0.png',
    ]


def test_alphas_that_could_be_mistaken_are_refused(folders, capsys):
    """net_3 is a foreground, and so is the third merged image of net."""
    save(folders / 'fg' / 'net.png', noise(4, 4, 3))
    save(folders / 'alpha' / 'net.png', noise(4, 4))
    for k in range(6, 15):
        save(folders / 'bg' / f'b{k}.png', noise(4, 4, 3))
    assert "got 'net_3' and 'net'" in refused(capsys, folders, per=4)
    assert run(folders, per=3) == 0  # there is no net_3 among net_0 to net_2


def test_results_are_replaced_by_force_alone(folders, capsys):
    assert run(folders) == 0
    changed = folders / 'out' / 'merged' / 'leaf_1.png'
    expected = changed.read_bytes()
    save(changed, noise(3, 3))
    capsys.readouterr()
    message = refused(capsys, folders)
    assert 'expected none of the results, got 8, such as' in message and '--force' in message
    assert run(folders, '--force') == 0
    assert changed.read_bytes() == expected


def test_alphas_that_are_where_they_belong_stay(folders):
    paths = [folders / name for name in ('fg', 'alpha', 'bg')]
    arguments = ['compose', *paths, '--out', folders, '--per-foreground', 3]
    assert sapa_mm([*map(str, arguments)]) == 0
    assert len(list((folders / 'merged').iterdir())) == 6
    assert len(list((folders / 'alpha').iterdir())) == 2


def test_other_modes_of_files(folders):
    """Grey backgrounds and palettes become RGB, transparency of foregrounds is left out."""
    Image.fromarray(noise(20, 30)).save(folders / 'bg' / 'b0.png')
    Image.fromarray(noise(20, 30, 3)).convert('P').save(folders / 'bg' / 'b1.png')
    Image.fromarray(noise(12, 17, 4)).save(folders / 'fg' / 'leaf.png')
    save(folders / 'alpha' / 'leaf.png', np.repeat(noise(12, 17)[..., None], 3, axis=2))
    assert run(folders) == 0
    assert pixels(folders / 'out' / 'merged' / 'leaf_1.png').shape == (12, 17, 3)
    alpha = noise(12, 17)[..., None] / 255
    behind = noise(20, 30)[:12, :17, None]
    expected = alpha * noise(12, 17, 4)[..., :3] + (1 - alpha) * behind
    got = pixels(folders / 'out' / 'merged' / 'leaf_0.png')
    np.testing.assert_array_equal(got, expected.astype(np.uint8))
