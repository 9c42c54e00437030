"""Files are matched by name, missing partners are named, and draws follow NumPy's generator."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image
from testing_imports import run

from sapa_mm.matting import CompositionDataset


def write(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros((2, 3), np.uint8)).save(folder / name)


@pytest.fixture
def train(tmp_path):
    """Three foregrounds, one of which has an alpha of another suffix, and five backgrounds."""
    folder = tmp_path / 'Training_set'
    write(folder / 'fg', 'b_1.jpg', 'a.png', 'b_1_0.JPEG')
    write(folder / 'alpha', 'a.png', 'b_1.PNG', 'b_1_0.tif', 'unused.png')
    write(folder / 'bg', *(f'{k}.jpg' for k in range(5)))
    (folder / 'bg' / 'readme.txt').touch()
    return tmp_path


@pytest.fixture
def test_set(tmp_path):
    """Two foregrounds merged with twenty backgrounds each, which share alphas but no trimaps."""
    folder = tmp_path / 'Test_set'
    names = [f'{name}_{k}.png' for name in ('cat', 'net_7_b') for k in range(20)]
    write(folder / 'merged', *names)
    write(folder / 'alpha', 'cat.png', 'net_7_b.jpg')
    write(folder / 'trimaps', *names)
    return tmp_path


def build(root, **options):
    config = dict(type='CompositionDataset', data_root=str(root), pipeline=[])
    return DATASETS.build(config | options)


def names(info):
    return {key: Path(path).name for key, path in info.items() if key.endswith('_path')}


def test_a_foreground_comes_with_its_alpha(train):
    dataset = build(train)
    assert [names(dataset.get_data_info(i)) for i in range(len(dataset))] == [
        dict(fg_path='a.png', alpha_path='a.png'),
        dict(fg_path='b_1.jpg', alpha_path='b_1.PNG'),
        dict(fg_path='b_1_0.JPEG', alpha_path='b_1_0.tif'),
    ]
    folder = train / 'Training_set'
    info = dataset[0]
    assert info['fg_path'] == str(folder / 'fg' / 'a.png')
    assert info['alpha_path'] == str(folder / 'alpha' / 'a.png')
    assert Path(info['bg_path']).is_file() and Path(info['bg_path']).parent == folder / 'bg'
    assert dataset.metainfo['task_name'] == 'matting'


def test_every_background_and_every_other_foreground_is_drawn(train):
    dataset = build(train)
    rounds = 300
    for index, own in enumerate(('a.png', 'b_1.jpg', 'b_1_0.JPEG')):
        drawn = [dataset[index] for _ in range(rounds)]
        backgrounds = Counter(Path(info['bg_path']).name for info in drawn)
        assert sorted(backgrounds) == [f'{k}.jpg' for k in range(5)]
        # Each count is within five standard deviations.
        assert all(
            abs(n - rounds / 5) < 5 * (rounds * 0.2 * 0.8) ** 0.5 for n in backgrounds.values()
        )
        seconds = Counter(names(info['second'])['fg_path'] for info in drawn)
        assert sorted([*seconds, own]) == ['a.png', 'b_1.jpg', 'b_1_0.JPEG']
        assert all(abs(n - rounds / 2) < 5 * (rounds / 4) ** 0.5 for n in seconds.values())
        for info in drawn:
            paths = names(info['second'])
            stems = {path.partition('.')[0] for path in paths.values()}
            assert set(paths) == {'fg_path', 'alpha_path'} and len(stems) == 1


def test_draws_are_those_of_the_seed(train):
    dataset = build(train)

    def draw(seed):
        np.random.seed(seed)  # noqa: NPY002
        return [dataset[i % 3] for i in range(30)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_the_only_foreground_is_its_own_second(train):
    dataset = build(train, indices=[1])
    assert len(dataset) == 1
    assert names(dataset[0]['second']) == names(dataset.get_data_info(0))
    assert names(dataset[0]['second'])['fg_path'] == 'b_1.jpg'


def test_a_place_from_the_end(train):
    seconds = {
        names(build(train, serialize_data=False)[-1]['second'])['fg_path'] for _ in range(30)
    }
    assert seconds == {'a.png', 'b_1.jpg'}


def test_twenty_merges_share_an_alpha(test_set):
    dataset = build(test_set, test_mode=True)
    assert len(dataset) == 40
    found = {info['img_path']: info for info in (names(dataset[i]) for i in range(40))}
    for name, alpha in (('cat', 'cat.png'), ('net_7_b', 'net_7_b.jpg')):
        for k in range(20):
            image = f'{name}_{k}.png'
            assert found[image] == dict(img_path=image, alpha_path=alpha, trimap_path=image)
    folder = test_set / 'Test_set'
    assert Path(dataset[0]['trimap_path']).parent == folder / 'trimaps'
    assert Path(dataset[0]['alpha_path']).parent == folder / 'alpha'
    assert Path(dataset[0]['img_path']).parent == folder / 'merged'
    assert 'bg_path' not in dataset[0] and 'second' not in dataset[0]


def alphas(root, images, files):
    folder = root / 'names' / str(len(list(root.glob('names/*'))))
    write(folder / 'merged', *images)
    write(folder / 'alpha', *files)
    write(folder / 'trimaps', *images)
    prefix = dict(img='merged', alpha='alpha', trimap='trimaps')
    dataset = build(folder, data_prefix=prefix, test_mode=True)
    return [names(dataset[i])['alpha_path'] for i in range(len(dataset))]


def test_names_that_hold_underscores_and_digits(tmp_path):
    pair = ['a_1.png', 'a_1_0.png']
    # One alpha for both, one for each, and those of two foregrounds.
    assert alphas(tmp_path, pair, ['a_1.png']) == ['a_1.png', 'a_1.png']
    assert alphas(tmp_path, pair, pair) == pair
    assert alphas(tmp_path, pair, [*pair, 'a.png']) == pair
    assert alphas(tmp_path, pair, ['a.png', 'a_1_0.png']) == ['a.png', 'a_1_0.png']
    # What stands behind the last underscore has to be a number.
    assert alphas(tmp_path, ['x_9_12.png', 'x_b.png'], ['x_9.png', 'x_b.png']) == [
        'x_9.png',
        'x_b.png',
    ]
    with pytest.raises(FileNotFoundError, match=r"expected 'x_b' \(.*for '.*x_b\.png', got no"):
        alphas(tmp_path, ['x_b.png'], ['x.png'])
    with pytest.raises(FileNotFoundError, match="expected 'x_1_2' or 'x_1' "):
        alphas(tmp_path, ['x_1_2.png'], ['x.png'])


def test_two_alphas_that_may_be_meant_are_refused(tmp_path):
    """a_1 may be the foreground a, merged, or the unmerged foreground a_1."""
    with pytest.raises(
        ValueError, match=r"one file for '.*a_1\.png', got '.*a_1\.png' and '.*a\.png'; give"
    ):
        alphas(tmp_path, ['a_0.png', 'a_1.png', 'a_1_0.png'], ['a.png', 'a_1.png'])


@pytest.mark.parametrize('folder', ['alpha', 'trimaps'])
def test_a_missing_partner_of_a_merged_image_is_named(test_set, folder):
    (test_set / 'Test_set' / folder / ('cat.png' if folder == 'alpha' else 'cat_3.png')).unlink()
    image = 'cat_0' if folder == 'alpha' else 'cat_3'
    with pytest.raises(
        FileNotFoundError,
        match=rf"\['{folder.removesuffix('s')}'\]: expected '{image}' or 'cat' .* for "
        rf"'.*{image}\.png', got no such file in '.*{folder}'",
    ):
        build(test_set, test_mode=True)


def test_a_missing_alpha_of_a_foreground_is_named(train):
    """No alpha is shared in training."""
    (train / 'Training_set' / 'alpha' / 'b_1_0.tif').unlink()
    with pytest.raises(FileNotFoundError, match=r"expected 'b_1_0' \(.*'.*b_1_0\.JPEG', got no"):
        build(train)


@pytest.mark.parametrize('key', ['fg', 'alpha', 'bg'])
def test_folders_that_are_missing_or_empty_are_named(train, key):
    with pytest.raises(FileNotFoundError, match=rf"data_prefix\['{key}'\].*no folder '.*nowhere'"):
        build(train, data_prefix={key: 'nowhere'})
    (train / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match=rf"data_prefix\['{key}'\].*images .*empty', got"):
        build(train, data_prefix={key: str(train / 'empty')})
    dataset = build(train, data_prefix={key: 'nowhere'}, lazy_init=True)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        len(dataset)


def test_folders_that_are_given_replace_the_published_ones(train, tmp_path):
    write(tmp_path / 'coco', 'photo.jpg')
    dataset = build(train, data_prefix=dict(bg='coco'))
    assert dataset[0]['bg_path'] == str(tmp_path / 'coco' / 'photo.jpg')
    assert len(dataset) == 3


def test_bad_arguments(train):
    with pytest.raises(ValueError, match=r'fg, alpha, bg with test_mode=False, got img, x'):
        build(train, data_prefix=dict(img='a', x='b'))
    with pytest.raises(TypeError, match=r'ann_file.*indices'):
        build(train, ann_file='list.txt')
    with pytest.raises(TypeError, match=r'test_mode.*1'):
        CompositionDataset(test_mode=1)
    write(train / 'Training_set' / 'alpha', 'a.bmp')
    with pytest.raises(ValueError, match=r"data_prefix\['alpha'\]: .*a\.bmp.*a\.png'; remove one"):
        build(train)


def test_no_other_framework_than_mmengine_is_needed():
    code = "from mmengine.registry import DATASETS; assert 'CompositionDataset' in DATASETS"
    done = run(code, 'mmcv', 'mmseg', 'mmdet')
    assert done.returncode == 0, done.stderr
