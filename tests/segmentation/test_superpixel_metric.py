"""Achievable segmentation accuracy and boundary recall, against hand-counted cases and loops."""

import math

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample

from sapa_mm.segmentation import achievable_segmentation_accuracy, boundary_recall


def columns(*numbers, height=4, dtype=np.int64):
    """A map whose rows are all ``numbers``."""
    return np.tile(np.array(numbers, dtype=dtype), (height, 1))


def neighbours(i, j, size):
    """Above, below, left and right of a pixel, inside the image."""
    for y, x in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
        if 0 <= y < size[0] and 0 <= x < size[1]:
            yield y, x


def boundary_pixels(numbers, ignore_index=None, form='stutz'):
    """The pixels with a neighbour of another number, without those at an ignored one; by loops."""
    found = set()
    for i, j in np.ndindex(numbers.shape):
        places = list(neighbours(i, j, numbers.shape))
        ignored = ignore_index in (numbers[i, j], *(numbers[place] for place in places))
        if form == 'seal':  # the neighbours that come later
            places = [place for place in places if place > (i, j)]
        if not ignored and any(numbers[place] != numbers[i, j] for place in places):
            found.add((i, j))
    return found


def random_maps(seed, size=(17, 22)):
    """Superpixels and a label with ignored pixels, both in blocks of a few pixels."""
    generator = np.random.default_rng(seed)
    maps = []
    for count, side in ((30, 3), (4, 5)):
        blocks = generator.integers(0, count, [-(-length // side) for length in size])
        maps.append(np.kron(blocks, np.ones((side, side), int))[: size[0], : size[1]])
    maps[1][generator.random(size) < 0.02] = 255
    return maps


def sample_of(levels, label, strides=(16, 32)):
    """What a segmentor that predicts superpixels gives."""
    return SegDataSample(
        pred_superpixels=PixelData(
            metainfo=dict(strides=strides), data=torch.from_numpy(np.stack(levels))
        ),
        gt_sem_seg=PixelData(data=torch.from_numpy(label)[None]),
    )


def evaluate(samples, **options):
    """The metrics of samples, each a batch of its own, by mmengine's evaluator."""
    evaluator = Evaluator(dict(type='mmseg.SuperpixelMetric', **options))
    evaluator.dataset_meta = {'classes': ('ground', 'square')}
    for sample in samples:
        evaluator.process(data_samples=[sample], data_batch={})
    return evaluator.evaluate(len(samples))


@pytest.mark.parametrize(
    ('superpixel_map', 'label', 'expected'),
    [
        (columns(0, 0, 1, 1), columns(0, 0, 1, 1), 1.0),
        (columns(0, 0, 0, 0), columns(0, 0, 1, 1), 0.5),
        # The first superpixel has 8 pixels of class 0 and 4 of class 1.
        (columns(0, 0, 0, 1), columns(0, 0, 1, 1), 0.75),
        # More superpixels than segments lose nothing, and the numbers mean nothing.
        (columns(9, 3, 7, 5000), columns(1, 1, 0, 0), 1.0),
        # Parts that lie apart are one superpixel.
        (columns(0, 1, 0), columns(0, 1, 1), 2 / 3),
        # Three of the four have class 0, then two of the three of which one is ignored.
        (
            np.array([[0, 0, 1, 1], [0, 0, 1, 1]]),
            np.array([[0, 0, 0, 1], [0, 1, 255, 1]]),
            5 / 7,
        ),
        (np.array([[4]]), np.array([[2]]), 1.0),
    ],
)
def test_accuracy_counted_by_hand(superpixel_map, label, expected):
    got = achievable_segmentation_accuracy(superpixel_map, label)
    assert type(got) is float
    assert got == pytest.approx(expected, abs=1e-12)


def test_accuracy_of_another_ignore_index():
    superpixel_map, label = columns(0, 0, 0, 1), columns(0, 7, 255, 255)
    # A third of the first superpixel is class 0, and a third 255.
    assert achievable_segmentation_accuracy(superpixel_map, label, ignore_index=7) == 2 / 3
    assert achievable_segmentation_accuracy(superpixel_map, label, ignore_index=255) == 0.5
    assert achievable_segmentation_accuracy(superpixel_map, label, ignore_index=3) == 0.5


@pytest.mark.parametrize('dtype', [np.uint8, np.int16, np.int32, np.int64])
def test_accuracy_of_small_integers(dtype):
    """No product of superpixels and classes may overflow."""
    superpixel_map = np.arange(300).reshape(15, 20).astype(np.int16)
    label = np.arange(300).reshape(15, 20) % 250
    assert achievable_segmentation_accuracy(superpixel_map, label.astype(dtype)) == 1.0
    # Every second row belongs to the superpixel above it, and has other classes.
    paired = superpixel_map // 40 * 20 + superpixel_map % 20
    expected = sum(
        np.unique(label[paired == s], return_counts=True)[1].max() for s in np.unique(paired)
    )
    assert expected < 300
    got = achievable_segmentation_accuracy(paired, label.astype(dtype))
    assert got == pytest.approx(expected / 300)


@pytest.mark.parametrize('seed', range(3))
def test_accuracy_by_loops(seed):
    superpixel_map, label = random_maps(seed)
    best = 0
    for s in np.unique(superpixel_map):
        classes = label[superpixel_map == s].tolist()
        best += max(classes.count(c) for c in range(4))
    expected = best / (label != 255).sum()
    assert 0.3 < expected < 1
    assert achievable_segmentation_accuracy(superpixel_map, label) == pytest.approx(expected)


def test_accuracy_without_a_pixel_that_counts():
    assert math.isnan(achievable_segmentation_accuracy(columns(0, 1), columns(255, 255)))
    assert math.isnan(achievable_segmentation_accuracy(columns(0, 1), columns(9, 9), 9))


@pytest.mark.parametrize(
    ('superpixel_map', 'radius', 'expected'),
    [
        (columns(0, 0, 0, 0, 1, 1, 1, 1), 0, 1.0),
        # Boundary pixels of the label are in columns 3 and 4, here in columns 4 and 5 ...
        (columns(0, 0, 0, 0, 0, 1, 1, 1), 0, 0.5),
        (columns(0, 0, 0, 0, 0, 1, 1, 1), 1, 1.0),
        # ... and here in columns 5 and 6.
        (columns(0, 0, 0, 0, 0, 0, 1, 1), 0, 0.0),
        (columns(0, 0, 0, 0, 0, 0, 1, 1), 1, 0.5),
        (columns(0, 0, 0, 0, 0, 0, 1, 1), 2, 1.0),
        (columns(0, 0, 0, 0, 0, 0, 0, 0), 9, 0.0),
        # Superpixels' boundaries elsewhere cost nothing.
        (columns(0, 1, 2, 3, 4, 5, 6, 7), 0, 1.0),
    ],
)
def test_recall_counted_by_hand(superpixel_map, radius, expected):
    label = columns(0, 0, 0, 0, 1, 1, 1, 1)
    got = boundary_recall(superpixel_map, label, radius=radius)
    assert type(got) is float
    assert got == expected


def test_seal_counts_one_side_of_a_boundary():
    label = columns(0, 0, 0, 0, 1, 1, 1, 1)
    # The label's boundary is column 3 alone, and the superpixels' columns 4, 5 and 6.
    for superpixel_map, expected in (
        (columns(0, 0, 0, 0, 0, 1, 1, 1), (0.0, 1.0, 1.0)),
        (columns(0, 0, 0, 0, 0, 0, 1, 1), (0.0, 0.0, 1.0)),
        (columns(0, 0, 0, 1, 1, 1, 1, 1), (0.0, 1.0, 1.0)),
    ):
        got = [boundary_recall(superpixel_map, label, radius=r, form='seal') for r in range(3)]
        assert got == list(expected)
        rows = [boundary_recall(superpixel_map.T, label.T, radius=r, form='seal') for r in range(3)]
        assert rows == list(expected)


@pytest.mark.parametrize(('height', 'width'), [(20, 20), (321, 481), (640, 820)])
def test_radius_of_seal_is_one_pixel(height, width):
    edge = width // 2
    label = columns(*[0] * edge, *[1] * (width - edge), height=height)
    for shift, expected in enumerate((1.0, 1.0, 0.0)):
        superpixel_map = columns(*[0] * (edge + shift), *[1] * (width - edge - shift))
        superpixel_map = np.broadcast_to(superpixel_map[:1], label.shape)
        assert boundary_recall(superpixel_map, label, form='seal') == expected


def test_recall_refuses_another_form():
    with pytest.raises(ValueError, match=r'form: expected one of stutz, seal, got .SEAL'):
        boundary_recall(columns(0, 1), columns(0, 1), form='SEAL')


def test_nearby_is_along_both_axes():
    label = np.zeros((5, 5), int)
    label[0, 0] = 1
    superpixel_map = np.zeros((5, 5), int)
    superpixel_map[2, 2] = 1
    # The label's boundary is the corner and its two neighbours, without the pixel across; that of
    # the superpixel a cross around the middle. Both neighbours are a step down and right from it.
    for radius, expected in enumerate((0.0, 2 / 3, 1.0)):
        got = boundary_recall(superpixel_map, label, radius=radius)
        assert got == pytest.approx(expected, abs=1e-12)


def test_ignored_pixels_and_their_neighbours_are_no_boundary():
    label = columns(0, 0, 1, 1, 255, 2)
    # Columns 1 and 2 are left.
    assert boundary_recall(columns(0, 0, 1, 1, 1, 1), label, radius=0) == 1.0
    assert boundary_recall(columns(0, 0, 0, 0, 1, 1), label, radius=0) == 0.0
    # Column 2 is a neighbour of column 3, which is ignored, and column 1 is left.
    label = columns(0, 0, 1, 255, 1, 1)
    assert boundary_recall(columns(0, 1, 1, 1, 1, 1), label, radius=0) == 1.0
    assert boundary_recall(columns(0, 0, 0, 1, 1, 1), label, radius=0) == 0.0
    # As another class the index makes more of them, columns 1 to 4.
    assert boundary_recall(columns(0, 0, 0, 1, 1, 1), label, 7, radius=0) == 0.5
    # Three columns apart the ignored one does not matter.
    label = columns(0, 0, 1, 1, 1, 9)
    assert boundary_recall(columns(0, 0, 0, 1, 1, 1), label, ignore_index=9, radius=0) == 0.5


def test_superpixels_are_not_ignored():
    """The number 255 is a superpixel like any other."""
    assert boundary_recall(columns(254, 254, 255, 255), columns(0, 0, 1, 1), radius=0) == 1.0


@pytest.mark.parametrize('form', ['stutz', 'seal'])
@pytest.mark.parametrize('radius', [0, 1, 2])
@pytest.mark.parametrize('seed', range(3))
def test_recall_by_loops(seed, radius, form):
    superpixel_map, label = random_maps(seed)
    # They are larger than the label's, so that some boundaries are missed.
    superpixel_map = np.kron(superpixel_map[::3, ::3], np.ones((7, 9), int))[:17, :22]
    truth = boundary_pixels(label, 255, form)
    found = boundary_pixels(superpixel_map, form=form)
    hits = sum(any(max(abs(i - y), abs(j - x)) <= radius for y, x in found) for i, j in truth)
    assert 0 < hits < len(truth)
    got = boundary_recall(superpixel_map, label, radius=radius, form=form)
    assert got == pytest.approx(hits / len(truth))


@pytest.mark.parametrize(
    ('height', 'width', 'radius'),
    # 0.0025 * hypot is 0.07, 0.49, 0.51, 1.0, 1.45, 2.0 and 2.6.
    [(20, 20, 0), (130, 147, 0), (140, 149, 1), (240, 320, 1), (321, 481, 1), (480, 640, 2)]
    + [(640, 820, 3)],
)
def test_radius_follows_the_diagonal(height, width, radius):
    edge = width // 2
    label = columns(*[0] * edge, *[1] * (width - edge), height=height)
    for shift in range(5):
        superpixel_map = np.roll(label, shift, axis=1)
        # The roll's other boundary is at the image's edge, out of reach.
        superpixel_map[:, :shift] = 0
        # Boundary pixels are edge - 1 and edge, against edge + shift - 1 and edge + shift.
        expected = ((shift <= radius) + (max(shift - 1, 0) <= radius)) / 2
        assert boundary_recall(superpixel_map, label) == expected


def test_recall_without_a_boundary():
    for label in (columns(1, 1, 1), columns(1, 255, 1), columns(255, 255, 255)):
        assert math.isnan(boundary_recall(columns(0, 1, 1), label))
    # There are two classes, but side by side with an ignored pixel.
    assert math.isnan(boundary_recall(columns(0, 1, 1), columns(0, 255, 1)))


@pytest.mark.parametrize('measure', [achievable_segmentation_accuracy, boundary_recall])
def test_metrics_refuse_maps_of_different_sizes(measure):
    for label in (columns(0, 1, height=5), columns(0, 1, 1), columns(0, 1)[0]):
        with pytest.raises(ValueError, match=r'\(4, 2\)'):
            measure(columns(0, 1), label)


@pytest.mark.parametrize('wrong', [1.5, True, '1'], ids=repr)
def test_recall_refuses_a_radius_that_is_no_int(wrong):
    with pytest.raises(TypeError, match='radius'):
        boundary_recall(np.zeros((4, 4), int), np.eye(4, dtype=int), radius=wrong)


def test_recall_refuses_a_negative_radius():
    with pytest.raises(ValueError, match=r'radius.*-1'):
        boundary_recall(columns(0, 1), columns(0, 1), radius=-1)


#: Three images have these levels and labels, the last without a boundary.
IMAGES = [
    # ASA and BR are 100, 100 and 50, 0 percent.
    ((columns(0, 0, 1, 1), columns(0, 0, 0, 0)), columns(0, 0, 1, 1)),
    # 75, 50; halves of rows: 50, and of each column on the boundary 2 of 4 pixels.
    ((columns(0, 0, 0, 1), columns(0, 0, 1, 1).T), columns(0, 0, 1, 1)),
    # 100 and NaN at both.
    ((columns(0, 1, 2, 3), columns(0, 0, 1, 1)), columns(1, 1, 1, 1)),
]


def test_metric_averages_over_images():
    samples = [sample_of(*image) for image in IMAGES]
    assert evaluate(samples[:1]) == {
        **{'ASA/s16': 100, 'BR/s16': 100, 'BR-SEAL/s16': 100, 'count/s16': 2},
        **{'ASA/s32': 50, 'BR/s32': 0, 'BR-SEAL/s32': 0, 'count/s32': 1},
    }
    # SEAL's form has the boundary in column 1, at one pixel of column 2, and of the halves of rows
    # in row 1, of which row 0 and row 2 are near.
    expected = {
        **{'ASA/s16': 87.5, 'BR/s16': 75, 'BR-SEAL/s16': 100, 'count/s16': 2},
        **{'ASA/s32': 50, 'BR/s32': 25, 'BR-SEAL/s32': 37.5, 'count/s32': 1.5},
    }
    assert evaluate(samples[:2]) == expected
    # The third has no boundary to find.
    expected |= {'ASA/s16': 91.67, 'ASA/s32': 66.67, 'count/s16': 2.67, 'count/s32': 1.67}
    assert evaluate(samples) == expected
    # They are the same in one batch.
    metric = METRICS.build(dict(type='mmseg.SuperpixelMetric'))
    metric.process({}, [sample.to_dict() for sample in samples])
    assert metric.evaluate(3) == expected


def sample_of_annotations(levels, annotations, **names):
    """What a segmentor gives for an image of several annotators."""
    sample = sample_of(levels, annotations[0])
    sample.pred_superpixels = PixelData(
        metainfo=names, data=torch.from_numpy(np.stack(levels)).long()
    )
    sample.set_metainfo(dict(annotations=np.stack(annotations)))
    return sample


def test_metric_averages_over_pairs_of_image_and_annotation():
    level = columns(0, 0, 0, 1)
    # ASA of the first is 1, 3/4 and 3/4, and of the second 1.
    first = [columns(0, 0, 0, 1), columns(0, 0, 1, 1), np.arange(16).reshape(4, 4) % 2 + 300]
    samples = [
        sample_of_annotations([level], first, numbers=(100,)),
        sample_of_annotations([columns(0, 1, 2, 3)], [columns(0, 1, 1, 1)], numbers=(100,)),
    ]
    values = evaluate(samples)
    assert list(values) == ['ASA/k100', 'BR/k100', 'BR-SEAL/k100', 'count/k100']
    assert values['ASA/k100'] == round(100 * (1 + 0.75 + 0.75 + 1) / 4, 2)
    # The mean over images would be 3.
    assert values['count/k100'] == (2 + 2 + 2 + 4) / 4
    recalls = [boundary_recall(level, label) for label in first] + [1]
    assert values['BR/k100'] == round(100 * np.mean(recalls), 2)
    recalls = [boundary_recall(level, label, form='seal') for label in first] + [1]
    assert values['BR-SEAL/k100'] == round(100 * np.mean(recalls), 2)


def test_levels_are_named_by_the_numbers_asked_for():
    levels = columns(0, 0, 1, 1), columns(0, 1, 2, 3)
    sample = sample_of_annotations(levels, [columns(0, 0, 1, 1)], numbers=(2, 500))
    values = evaluate([sample])
    assert {name: n for name, n in values.items() if 'count' in name} == {
        'count/k2': 2,
        'count/k500': 4,
    }
    assert len(values) == 8


def test_metric_leaves_out_an_image_that_is_ignored_as_a_whole():
    levels, _ = IMAGES[0]
    ignored = sample_of(levels, columns(255, 255, 255, 255))
    other = sample_of(*IMAGES[1])

    def measures(samples):
        return {n: value for n, value in evaluate(samples).items() if not n.startswith('count')}

    assert measures([ignored, other]) == measures([other])
    assert all(math.isnan(value) for value in measures([ignored]).values())


def test_metric_of_images_of_several_sizes():
    wide = sample_of((columns(0, 0, 0, 1, 1, 1),) * 2, columns(0, 0, 0, 1, 1, 1))
    assert evaluate([wide, sample_of(*IMAGES[1])])['ASA/s16'] == 87.5


def test_options_of_the_metric():
    levels, label = IMAGES[0]
    label = np.where(label == 1, 7, label)
    values = evaluate([sample_of(levels, label)], ignore_index=7, prefix='superpixels')
    assert {name: values[name] for name in ('superpixels/ASA/s16', 'superpixels/ASA/s32')} == {
        'superpixels/ASA/s16': 100,
        'superpixels/ASA/s32': 100,
    }
    assert math.isnan(values['superpixels/BR/s32'])
    # The strides are those of the samples.
    values = evaluate([sample_of(levels, label, strides=(4, 8))])
    assert list(values) == [
        f'{name}/s{stride}' for stride in (4, 8) for name in ('ASA', 'BR', 'BR-SEAL', 'count')
    ]


def test_metric_refuses_samples_without_superpixels():
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 4, 4, dtype=torch.int64)))
    with pytest.raises(ValueError, match='SuperpixelEncoderDecoder'):
        evaluate([sample])


def test_metric_refuses_superpixels_of_another_size():
    with pytest.raises(ValueError, match=r'(?s)(?=.*\(4, 4\))(?=.*\(4, 3\))'):
        evaluate([sample_of(IMAGES[0][0], columns(0, 0, 1))])
