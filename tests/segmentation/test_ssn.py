"""SSN and HCSSN against a plain rewriting of the network, the clustering and the losses."""

import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from skimage.measure import label as connected_regions
from testing_clustering import assert_all_get_a_gradient
from testing_ssn import (
    FORMS,
    SIZE,
    Plain,
    agreement,
    build,
    build_random,
    canonical,
    grid_of,
    losses_of,
    make_images,
    make_labels,
    make_samples,
    plain_of,
    predict,
    raw_superpixels,
    relative,
)
from upsampler_oracles import count, refused

from sapa_mm.segmentation import SSN
from sapa_mm.segmentation.ssn import superpixel_grid


def test_parameters():
    plain, clustered = build(), build(dict())
    assert type(plain) is type(clustered) is SSN
    assert count(plain) == 214_578
    assert count(clustered) - count(plain) == 16_384
    narrow = build(dict(embed_dims=16))
    assert count(narrow) - count(plain) == 2 * 2 * 64 * 16
    # HCSSN takes SSN's weights.
    result = clustered.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert len(result.missing_keys) == 4


@pytest.mark.parametrize('form', FORMS)
def test_layers(form):
    model = build(FORMS[form])
    plain = Plain(model)
    shapes = [tuple(conv.weight.shape) for conv in plain.convs]
    assert shapes == [(64, 5, 3, 3), *[(64, 64, 3, 3)] * 5, (15, 197, 3, 3)]
    assert [conv.bias is not None for conv in plain.convs] == [False] * 6 + [True]
    assert [norm.num_features for norm in plain.norms] == [64] * 6
    assert [x.in_channels for x in plain.clusterings] == ([64, 64] if form == 'HCSSN' else [])
    for conv in plain.convs:
        weight = conv.weight.detach()
        assert weight.std().item() == pytest.approx(1e-3, rel=0.08)
        assert abs(weight.mean().item()) < 1e-4
        assert 2.5e-3 < weight.abs().max() < 7e-3  # it is no uniform distribution


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('number', [20, 24, 60])
def test_losses(form, number):
    """Three and five rows of superpixels over 32 pixels divide them unequally."""
    model = build_random(FORMS[form], number=number)
    images = make_images(2)
    labels = torch.stack([make_labels(), make_labels(4, 5)])
    plain = plain_of(model, images)
    assert model.training
    got = losses_of(model, images, *labels)
    assert set(got) == {'loss_reconstruction', 'loss_compactness'}
    with torch.no_grad():
        expected = plain.losses(images, labels, number, 3)
        other = plain.losses(images, labels, number, 1)
    for name, value in expected.items():
        assert got[name].dim() == 0
        assert relative(got[name], value) < 1e-4, name
        # Neither of them is blind to the number of iterations.
        assert relative(got[name], other[name]) > 1e-3, name


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    ('form', 'seeds'), [('SSN', 'pool'), ('HCSSN', 'pool'), ('HCSSN', 'block')]
)
def test_features(form, seeds, training):
    model = build_random(FORMS[form], seeds=seeds).train(training)
    images = make_images(2)
    for number in (20, 60):
        expected = Plain(model, seeds=seeds).features(images, number)
        torch.testing.assert_close(model.extract_feat(images, number), expected)
        if form == 'HCSSN':
            other = {'pool': 'block', 'block': 'pool'}[seeds]
            wrong = Plain(model, seeds=other).features(images, number)
            assert (wrong - expected).abs().max() > 1e-2


@pytest.mark.parametrize('form', FORMS)
def test_gradients_of_the_losses(form):
    model = build_random(FORMS[form])
    images, labels = make_images(2), torch.stack([make_labels(), make_labels()])
    plain = plain_of(model, images)
    expected = plain.losses(images, labels, 20, 3)
    got = losses_of(model, images, *labels)
    parameters = dict(model.named_parameters())
    for name in expected:
        sides = [
            torch.autograd.grad(losses[name], list(parameters.values()), retain_graph=True)
            for losses in (got, expected)
        ]
        for parameter, one, other in zip(parameters, *sides, strict=True):
            scale = other.abs().max().item()
            assert scale > 0, (name, parameter)
            assert (one - other).abs().max().item() < 1e-3 * scale, (name, parameter)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', [SIZE, (48, 32), (33, 49), (51, 22)])
def test_training_from_the_start(form, size):
    model = build(FORMS[form])
    images = make_images(2, size, torch.float32)
    losses = losses_of(model, images, make_labels(size=size), make_labels(size=size))
    assert all(value.isfinite() for value in losses.values())
    assert losses['loss_reconstruction'] > 0.01
    assert losses['loss_compactness'] > 0
    sum(losses.values()).backward()
    assert_all_get_a_gradient(model)


def test_more_segments_than_fifty():
    model = build_random()
    images, labels = make_images(1), make_labels(6, 10)
    assert len(labels.unique()) == 60
    got = losses_of(model, images, labels)['loss_reconstruction']
    expected = plain_of(model, images).losses(images, labels[None], 20, 3)['loss_reconstruction']
    assert relative(got, expected) < 1e-4
    # The numbers themselves mean nothing.
    order = torch.randperm(60)
    for renumbered in (order[labels], 59 - labels, labels + 60, 3 * labels):
        renumbered = losses_of(model, images, renumbered)['loss_reconstruction']
        assert relative(renumbered, got) < 1e-9
    for collapsed in (labels.clamp(max=49), labels % 50):
        collapsed = losses_of(model, images, collapsed)['loss_reconstruction']
        assert relative(collapsed, got) > 1e-3


def test_images_of_a_batch_have_segments_of_their_own():
    """In evaluation the norms do not mix images, so that the losses are means of each's."""
    model = build_random().eval()
    images, labels = make_images(2), [make_labels(), make_labels(6, 10)]
    together = losses_of(model, images, *labels)
    alone = [losses_of(model, images[i : i + 1], labels[i]) for i in range(2)]
    for name, value in together.items():
        assert relative(value, (alone[0][name] + alone[1][name]) / 2) < 1e-9


def test_one_segment_is_reconstructed():
    model = build_random()
    losses = losses_of(model, make_images(1), torch.zeros(SIZE, dtype=torch.int64))
    assert abs(losses['loss_reconstruction'].item()) < 1e-5
    assert losses['loss_compactness'] > 0


def test_losses_under_autocast():
    """The network may be rounded, the clustering and the logarithm may not."""
    model = build_random(number=24).float()
    images, labels = make_images(2, dtype=torch.float32), [make_labels(), make_labels()]
    expected = losses_of(model, images, *labels)
    with torch.autocast('cpu', torch.bfloat16):
        got = losses_of(model, images, *labels)
    for name, value in expected.items():
        assert got[name].dtype == torch.float32
        assert relative(got[name], value) < 0.1
    sum(got.values()).backward()
    assert_all_get_a_gradient(model)


@pytest.mark.parametrize('form', FORMS)
def test_superpixels_of_several_numbers(form):
    numbers = (6, 60, 24)
    model = build_random(FORMS[form], numbers=numbers, iterations=4)
    # What the training takes has no part in it.
    images = make_images(2)
    plain = plain_of(model, images)
    plain.training = False
    samples = make_samples(make_labels(), make_labels())
    with torch.no_grad():
        found = model.eval()(images, samples, mode='predict')
    assert len(found) == 2
    for i, sample in enumerate(found):
        superpixels = sample.pred_superpixels
        assert tuple(superpixels.numbers) == numbers
        assert superpixels.data.shape == (3, *SIZE)
        assert superpixels.data.dtype == torch.int64
        assert 'gt_sem_seg' in sample
        for number, level in zip(numbers, superpixels.data, strict=True):
            with torch.no_grad():
                expected = plain.associate(images, number, 4).argmax(2)[i].view(SIZE)
                other = plain.associate(images, number, 3).argmax(2)[i].view(SIZE)
            assert (canonical(level) == canonical(expected)).all()
            assert (canonical(level) != canonical(other)).any()
            height, width = grid_of(number, SIZE)
            assert level.min() >= 0
            assert height * width / 2 < len(level.unique()) <= height * width


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', [SIZE, (48, 32), (33, 49)])
def test_without_its_network_it_clusters_pixels(form, size):
    numbers = (24, 50)
    model = build_random(FORMS[form], numbers=numbers, iterations=10)
    fuse = Plain(model).convs[-1]
    with torch.no_grad():
        fuse.weight.zero_()
        fuse.bias.zero_()
    images = make_images(2, size)
    for i, found in enumerate(predict(model, images)):
        for number, level in zip(numbers, found, strict=True):
            labels = raw_superpixels(images, number, 10)[i]
            assert agreement(level, labels) > 0.999


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(('connectivity', 'least'), [(True, 0.8), (False, 0.9)])
def test_at_the_start_it_hardly_differs_from_that(form, connectivity, least):
    model = build(FORMS[form], numbers=(24,), iterations=2, connectivity=connectivity)
    images = make_images(2, dtype=torch.float32)
    expected = raw_superpixels(images, 24, 2)
    for (level,), labels in zip(predict(model, images), expected, strict=True):
        assert agreement(level, labels) > least


@pytest.mark.parametrize('size', [SIZE, (33, 49), (51, 22)])
def test_connected_superpixels(size):
    numbers = (8, 40)
    model = build(numbers=numbers, iterations=5, connectivity=True)
    images = make_images(2, size, torch.float32) + 6 * torch.randn(2, 3, *size)
    loose = build(numbers=numbers, iterations=5)
    loose.load_state_dict(model.state_dict())
    torn = 0
    for connected, before in zip(predict(model, images), predict(loose, images), strict=True):
        for number, level, was in zip(numbers, connected, before, strict=True):
            torn += connected_regions(was.numpy(), background=-1, connectivity=1).max() > len(
                was.unique()
            )
            values, sizes = level.unique(return_counts=True)
            regions = connected_regions(level.numpy(), background=-1, connectivity=1)
            assert regions.max() == len(values)
            assert torch.equal(values, torch.arange(len(values)))
            assert sizes.min() >= 0.06 * size[0] * size[1] / number
    # Without it they are in pieces, or nothing would have been tested.
    assert torn


@pytest.mark.parametrize('size', [(33, 49), (49, 33), (40, 17), (64, 8)])
@pytest.mark.parametrize('form', FORMS)
def test_any_size(form, size):
    numbers = (10, 45)
    model = build(FORMS[form], numbers=numbers)
    (found,) = predict(model, make_images(1, size, torch.float32))
    assert found.shape == (2, *size)
    for number, level in zip(numbers, found, strict=True):
        height, width = superpixel_grid(number, size)
        assert (height > width) == (size[0] > size[1])
        assert height * width / 2 < len(level.unique()) <= height * width


def test_a_batch_gives_what_its_images_give():
    model = build_random(numbers=(6, 24))
    images = make_images(3)
    together = predict(model, images)
    for i, found in enumerate(together):
        (alone,) = predict(model, images[i : i + 1])
        assert torch.equal(found, alone)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize('connectivity', [True, False])
def test_original_size(connectivity):
    """The image had been halved, so that every pixel stands for 2 x 2."""
    model = build(numbers=(6, 24), connectivity=connectivity)
    images = make_images(1, dtype=torch.float32)
    (small,), (large,) = predict(model, images), predict(model, images, (64, 96))
    assert large.shape == (2, 64, 96)
    if not connectivity:
        assert torch.equal(large, small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2))
    else:
        for level, number in zip(large, (6, 24), strict=True):
            values, sizes = level.unique(return_counts=True)
            regions = connected_regions(level.numpy(), background=-1, connectivity=1)
            assert regions.max() == len(values)
            assert sizes.min() >= 0.06 * 64 * 96 / number


def test_prediction_without_data_samples():
    model = build(numbers=(24,)).eval()
    images = make_images(2, dtype=torch.float32)
    with torch.no_grad():
        found = model(images, mode='predict')
    for sample, expected in zip(found, predict(model, images), strict=True):
        assert torch.equal(sample.pred_superpixels.data, expected)


def test_the_papers_crop():
    model = build(number=169, iterations=5, numbers=(169,))
    size = (208, 208)
    images = make_images(1, size, torch.float32)
    losses = losses_of(model, images, make_labels(4, 4, size=size))
    assert all(value.isfinite() for value in losses.values())
    # Superpixels are about 16 pixels wide: mostly one segment, and within reach of their mean.
    assert losses['loss_reconstruction'] < 1.0
    assert 1e-5 * 5 < losses['loss_compactness'] < 1e-5 * 500
    ((level,),) = predict(model, images)
    assert 150 < len(level.unique()) <= 169


@pytest.mark.parametrize(
    ('number', 'size', 'expected'),
    [
        (169, (208, 208), (13, 13)),
        (168, (208, 208), (12, 12)),
        (100, (321, 481), (8, 12)),
        (100, (481, 321), (12, 8)),
        (600, (321, 481), (20, 29)),
        (600, (481, 321), (29, 20)),
        (24, (32, 48), (4, 6)),
        (3, (3, 1), (3, 1)),
        (1, (7, 7), (1, 1)),
        (12, (3, 4), (3, 4)),
    ],
)
def test_grid(number, size, expected):
    grid = superpixel_grid(number, size)
    assert grid == expected
    assert [type(side) for side in grid] == [int, int]


def test_grid_of_whole_roots():
    """A root that is a whole number is not missed by rounding."""
    for height in range(1, 41):
        for width in range(1, 41):
            for stride in (1, 3, 7, 16, 49):
                size = (stride * height, stride * width)
                assert superpixel_grid(height * width, size) == (height, width)


@pytest.mark.parametrize(
    ('number', 'size', 'error', 'named'),
    [
        (65, (8, 8), ValueError, ('number', '65')),
        (1537, (32, 48), ValueError, ('number', '1537')),
        # The roots are below 1.
        (1, (4, 5), ValueError, ('number', '1')),
        (1, (5, 4), ValueError, ('number', '1')),
        (10, (2, 100), ValueError, ('number', '10')),
        (0, (8, 8), ValueError, ('number', '0')),
        (-4, (8, 8), ValueError, ('number', '4')),
        (4.0, (8, 8), TypeError, ('number', '4')),
        (True, (8, 8), TypeError, ('number', 'True')),
        ('9', (8, 8), TypeError, ('number', '9')),
    ],
)
def test_bad_grid(number, size, error, named):
    with refused(*named, error=error):
        superpixel_grid(number, size)


@pytest.mark.parametrize('number', [65, 1000])
def test_more_superpixels_than_pixels(number):
    model = build(number=number, numbers=(4, number))
    images = make_images(1, (8, 8), torch.float32)
    with pytest.raises(ValueError, match=str(number)):
        losses_of(model, images, make_labels(2, 2, size=(8, 8)))
    with pytest.raises(ValueError, match=str(number)):
        predict(model, images)


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'train_cfg': dict(num_superpixels=0, iterations=5)}, 'num_superpixels'),
        ({'train_cfg': dict(num_superpixels=9.5, iterations=5)}, 'num_superpixels'),
        ({'train_cfg': dict(num_superpixels=9, iterations=0)}, 'iterations'),
        ({'train_cfg': dict(num_superpixels=9, iterations=True)}, 'iterations'),
        ({'test_cfg': dict(numbers=(), iterations=5, connectivity=True)}, 'numbers'),
        ({'test_cfg': dict(numbers=(9, 0), iterations=5, connectivity=True)}, 'numbers'),
        ({'test_cfg': dict(numbers=(9, 'a'), iterations=5, connectivity=True)}, 'numbers'),
        ({'test_cfg': dict(numbers=(9,), iterations=0, connectivity=True)}, 'iterations'),
        ({'test_cfg': dict(numbers=(9,), iterations=5, connectivity='yes')}, 'connectivity'),
        ({'clustering_cfg': True}, 'clustering_cfg'),
        ({'clustering_cfg': dict(embed_dims=0)}, 'embed_dims'),
    ],
    ids=str,
)
def test_bad_config(changes, named):
    good = dict(
        type='SSN',
        clustering_cfg=None,
        train_cfg=dict(num_superpixels=9, iterations=5),
        test_cfg=dict(numbers=(9,), iterations=5, connectivity=True),
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        MODELS.build(good)
        with refused(named):
            MODELS.build(good | changes)
