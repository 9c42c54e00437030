"""Alpha of an image that the network sees at a smaller size."""

import math

import cv2
import numpy as np
import pytest
from testing_matting import build_contrasting
from upsampler_oracles import refused

from sapa_mm.matting import predict_alpha, predict_reduced, reduce_trimap, reduced_size


def plain_reduced(trimap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Of every pixel's area, pixel by pixel."""
    (height, width), out = trimap.shape, np.empty(size, np.uint8)
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(i * height // size[0], math.ceil((i + 1) * height / size[0]))
            cols = slice(j * width // size[1], math.ceil((j + 1) * width / size[1]))
            values = np.unique(trimap[rows, cols])
            out[i, j] = values[0] if len(values) == 1 else 128
    return out


@pytest.mark.parametrize('size', [(20, 30), (10, 15), (7, 11), (19, 29), (1, 1), (40, 60)], ids=str)
def test_reduced_trimap(size):
    coarse = np.random.default_rng(0).choice(np.uint8([0, 128, 255]), (8, 12))
    trimap = np.repeat(np.repeat(coarse, 5, 0), 5, 1)
    assert np.array_equal(reduce_trimap(trimap, size), plain_reduced(trimap, size))


def test_a_thin_band_stays_unknown():
    trimap = np.zeros((64, 64), np.uint8)
    trimap[:, 33:] = 255
    trimap[:, 32] = 128
    reduced = reduce_trimap(trimap, (8, 8))
    assert (reduced == np.uint8([0] * 4 + [128] + [255] * 3)).all()
    # Without a band, what is mixed is not known either.
    trimap[:, 32] = 0
    assert np.array_equal(reduce_trimap(trimap, (8, 8)), reduced)


@pytest.mark.parametrize(
    ('size', 'max_size', 'expected'),
    [
        ((300, 400), 100, (75, 100)),
        ((401, 300), 100, (100, 75)),
        ((30, 40), 40, (30, 40)),
        ((30, 40), 500, (30, 40)),
        ((3, 1000), 100, (1, 100)),
    ],
)
def test_reduced_size(size, max_size, expected):
    assert reduced_size(size, max_size) == expected


def make_pair(*size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    trimap = np.full(size, 127, np.uint8)
    trimap[:7] = 0
    trimap[-9:] = 255
    return rng.integers(256, size=(*size, 3), dtype=np.uint8), trimap


def test_predicts():
    net = build_contrasting()
    image, trimap = make_pair(60, 45)
    got = predict_reduced(net, image, trimap, 30)
    assert got.shape == (60, 45) and got.dtype == np.uint8
    assert (got[:7] == 0).all() and (got[-9:] == 255).all()
    small = cv2.resize(image, (22, 30), interpolation=cv2.INTER_AREA)
    known = np.where(trimap == 127, np.uint8(128), trimap)
    alpha = predict_alpha(net, small, reduce_trimap(known, (30, 22))).pred_alpha.data[0].numpy()
    # Bilinear, between centres of pixels.
    rows = np.clip((np.arange(60) + 0.5) * 30 / 60 - 0.5, 0, 29)
    cols = np.clip((np.arange(45) + 0.5) * 22 / 45 - 0.5, 0, 21)
    half = np.stack([np.interp(cols, np.arange(22), row) for row in alpha.astype(float)])
    full = np.stack([np.interp(rows, np.arange(30), col) for col in half.T], 1)
    unknown = trimap == 127
    assert np.abs(got[unknown] - full[unknown]).max() <= 1
    assert len(np.unique(got[unknown])) > 50


def test_an_image_that_is_small_enough():
    net = build_contrasting()
    image, trimap = make_pair(32, 21)
    whole = predict_alpha(net, image, trimap).pred_alpha.data[0].numpy()
    assert np.array_equal(predict_reduced(net, image, trimap, 32), whole)


def test_bad_input():
    net = build_contrasting()
    image, trimap = make_pair(32, 21)
    with refused('max_size', '0', error=ValueError):
        predict_reduced(net, image, trimap, 0)
    with refused('one size', error=ValueError):
        predict_reduced(net, image, trimap[1:], 16)
    with refused('trimap', '30', error=ValueError):
        predict_reduced(net, image, np.where(trimap == 0, np.uint8(30), trimap), 16)
