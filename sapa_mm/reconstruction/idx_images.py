"""Images in IDX files, the format of MNIST and Fashion-MNIST."""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import DATASETS
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..ops.checks import check_choice, check_positive_int

FILES = {'train': 'train-images-idx3-ubyte', 'test': 't10k-images-idx3-ubyte'}
WHERE = (
    "Debian's package dataset-fashion-mnist installs Fashion-MNIST to "
    '/usr/share/datasets/fashion-mnist'
)
# The file begins with two zeros, the code of unsigned bytes, and the number of dimensions.
MAGIC = b'\x00\x00\x08\x03'
HEADER = struct.Struct('>4s3I')


def read_idx_images(path: str | os.PathLike) -> Tensor:
    """Read an IDX file of 8-bit images.

    Args:
        path: The file; one that ends in ``.gz`` is decompressed.

    Returns:
        (N, H, W), uint8.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no IDX file of images, or shorter or longer than its header says.
    """
    path = Path(path)
    data = path.read_bytes()
    if path.suffix == '.gz':
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f'{path}: expected a gzip file that is whole; {error}') from error
    if len(data) < HEADER.size:
        raise ValueError(f'{path}: expected a header of {HEADER.size} bytes, got {len(data)}')
    magic, *shape = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(
            f'{path}: expected magic {MAGIC.hex()} of IDX images of unsigned bytes, got '
            f'{magic.hex()}'
        )
    if 0 in shape:
        raise ValueError(f'{path}: expected images, height and width of at least 1, got {shape}')
    got = len(data) - HEADER.size
    if got != math.prod(shape):
        count, height, width = shape
        raise ValueError(
            f'{path}: expected {count} images of {height} x {width}, {math.prod(shape)} bytes, '
            f'got {got} bytes'
        )
    # It is a copy, since the bytes are not writable, which torch would warn of.
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=HEADER.size).copy()).view(shape)


@DATASETS.register_module()
class IdxImages(Dataset):
    """The images of MNIST or Fashion-MNIST, without their labels.

    All of them are kept in memory as 8-bit images of ``size``. They are resized bilinearly and
    rounded rather than padded with zeros, so that the whole image has content to reconstruct.

    Args:
        data_root: Folder with the files as they are published, ``train-images-idx3-ubyte`` and
            ``t10k-images-idx3-ubyte``, each with or without ``.gz``.
        split: ``'train'`` or ``'test'``, the file that ends in ``t10k``.
        size: Height and width that the images are resized to.
        num_images: Only the first so many images, for short runs. Default: all.

    Raises:
        TypeError: ``size`` or ``num_images`` is no int.
        ValueError: An unknown split, a size that is not positive, a damaged file, or one with fewer
            than ``num_images``.
        FileNotFoundError: ``data_root`` has no such file.
    """

    def __init__(
        self,
        data_root: str | os.PathLike,
        split: str = 'train',
        size: int = 32,
        num_images: int | None = None,
    ):
        check_choice('split', split, tuple(FILES))
        check_positive_int('size', size)
        self.path = self.find(data_root, split)
        images = read_idx_images(self.path)
        if num_images is not None:
            check_positive_int('num_images', num_images)
            if num_images > len(images):
                raise ValueError(
                    f'num_images: expected at most the {len(images)} of {self.path}, got '
                    f'{num_images}'
                )
            images = images[:num_images]
        if images.shape[1:] != (size, size):
            images = torch.cat([self._resize(chunk, size) for chunk in images.split(4096)])
        self.images = images.unsqueeze(1)

    @staticmethod
    def find(data_root: str | os.PathLike, split: str) -> Path:
        """Return the path of a split's file; plain files come before compressed ones.

        Args:
            data_root: Folder with the files.
            split: ``'train'`` or ``'test'``.

        Raises:
            FileNotFoundError: There is neither.
        """
        plain = Path(data_root) / FILES[split]
        for path in (plain, plain.with_name(f'{plain.name}.gz')):
            if path.is_file():
                return path
        raise FileNotFoundError(f'data_root: expected {plain}, with or without .gz; {WHERE}')

    @staticmethod
    def _resize(images: Tensor, size: int) -> Tensor:
        """Resize images (N, H, W) to (N, size, size), uint8."""
        resized = F.interpolate(
            images.unsqueeze(1).float(), (size, size), mode='bilinear', align_corners=False
        )
        return resized.squeeze(1).round().to(torch.uint8)

    @property
    def metainfo(self) -> dict:
        """Tell the evaluators what they ask for."""
        return {'dataset_type': type(self).__name__, 'task_name': 'reconstruction'}

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return an image (1, size, size), float32 in [0, 1], under ``inputs``."""
        return {'inputs': self.images[index] / 255}
