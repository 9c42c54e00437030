"""Images and labels as CamVid's folders have them."""

from pathlib import Path

import numpy as np
from PIL import Image

LABELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def make_pair(
    root: Path,
    name: str,
    suffix: str = '.png',
    split: str = 'training',
    labels: np.ndarray = LABELS,
    image: np.ndarray | None = None,
) -> None:
    """An image, by default of one grey, with labels, by default 0 to 11, one a pixel."""
    if image is None:
        image = np.full((*labels.shape, 3), 7, np.uint8)
    for room, ending, array in (
        ('images', suffix, image),
        ('annotations', '.png', labels),
    ):
        file = root / room / split / f'{name}{ending}'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(file)
