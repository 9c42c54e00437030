import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

# All of its tests need a GPU; what can run elsewhere is in its neighbours.
collect_ignore = [] if torch.cuda.is_available() else ['test_graph.py']


@pytest.fixture
def write_idx() -> Callable[..., Path]:
    """Writes images (N, H, W), uint8, as an IDX file; other headers make damaged ones."""

    def write(path: Path, images: np.ndarray, magic: int = 0x803, count: int | None = None) -> Path:
        count = len(images) if count is None else count
        data = struct.pack('>4I', magic, count, *images.shape[1:]) + images.tobytes()
        path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)
        return path

    return write


@pytest.fixture
def draw_images() -> Callable[..., np.ndarray]:
    """Draws images (N, 28, 28), uint8: a smooth blob each, as different as clothes are."""

    def draw(count: int, seed: int = 0) -> np.ndarray:
        generator = np.random.default_rng(seed)
        center = generator.uniform(8, 20, (2, count, 1, 1))
        width = generator.uniform(3, 9, (count, 1, 1))
        rows, cols = np.mgrid[:28, :28]
        distance = (rows - center[0]) ** 2 + (cols - center[1]) ** 2
        return (255 * np.exp(-distance / (2 * width**2))).astype(np.uint8)

    return draw


@pytest.fixture
def data_root(tmp_path, write_idx, draw_images) -> Path:
    """A folder as Fashion-MNIST is published, with 20 images to train on and 12 to test."""
    folder = tmp_path / 'data'
    folder.mkdir()
    write_idx(folder / 'train-images-idx3-ubyte.gz', draw_images(20))
    write_idx(folder / 't10k-images-idx3-ubyte.gz', draw_images(12, seed=1))
    return folder
