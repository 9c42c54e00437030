"""BSDS500 in mmseg: images with the segmentations of several people each, and float Lab."""

import io
from typing import ClassVar

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmengine import fileio
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, TRANSFORMS

from ..frameworks import require
from ..ops.checks import check_int

# mmseg's pixels that do not count have this label.
IGNORED = 255


@DATASETS.register_module()
class BSDS500Dataset(BaseSegDataset):
    """The Berkeley Segmentation Data Set 500 (Arbelaez et al., PAMI 2011), as published.

    An image ``images/train/NAME.jpg`` has its segmentations in ``groundTruth/train/NAME.mat``,
    which `LoadBSDSAnnotations` reads. Segments are no classes: the data set has one, 'segment'.

    Args:
        ann_file: A text file, in ``data_root`` unless its path is absolute, with an image's name,
            without the suffix, a line. Default: all images, sorted by name.
        data_prefix: Folders of the images (``img_path``) and of the segmentations
            (``seg_map_path``), below ``data_root``. Default: those of the training images.
        img_suffix: Suffix of the images.
        seg_map_suffix: Suffix of the segmentations.
        **kwargs: ``BaseSegDataset``'s other arguments.

    Raises:
        FileNotFoundError: When the data are loaded: there are no images, or one is missing or has
            no file of segmentations.
    """

    METAINFO: ClassVar[dict] = dict(classes=('segment',), palette=[[128, 128, 128]])

    def __init__(
        self,
        ann_file: str = '',
        data_prefix: dict | None = None,
        img_suffix: str = '.jpg',
        seg_map_suffix: str = '.mat',
        **kwargs: object,
    ):
        if data_prefix is None:
            data_prefix = dict(img_path='images/train', seg_map_path='groundTruth/train')
        super().__init__(
            ann_file=ann_file,
            data_prefix=data_prefix,
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """List the images with their files of segmentations."""
        folder = self.data_prefix.get('img_path') or ''
        if not fileio.isdir(folder, backend_args=self.backend_args):
            raise FileNotFoundError(
                f"data_prefix: expected a folder of images in img_path, got '{folder}'"
            )
        found = super().load_data_list()
        if not found:
            raise FileNotFoundError(
                f"data_prefix: expected images '*{self.img_suffix}' in img_path, got none in "
                f"'{folder}'"
            )
        for info in found:
            image, segments = info['img_path'], info.get('seg_map_path')
            if self.ann_file and not fileio.exists(image, backend_args=self.backend_args):
                raise FileNotFoundError(f"ann_file: expected images, got no '{image}'")
            if segments and not fileio.exists(segments, backend_args=self.backend_args):
                raise FileNotFoundError(
                    f"data_prefix: expected segmentations for '{image}', got no '{segments}'"
                )
        return found


def read_segmentations(path: str, backend_args: dict | None = None) -> list[np.ndarray]:
    """Read all segmentations of an image of BSDS500.

    Args:
        path: A .mat file with the structure ``groundTruth`` of the published ones.
        backend_args: mmengine's arguments of the file's backend. Default: chosen by the path.

    Returns:
        One a person, (H, W), integers as the file has them: published ones are uint16 from 1.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: The file is no .mat file, or has no such structure.
    """
    with require('SciPy', 'read_segmentations', 'scipy'):
        from scipy.io import loadmat
    content = io.BytesIO(fileio.get(path, backend_args=backend_args))
    try:
        table = loadmat(content)
    except Exception as error:  # of whatever kind: the file is the user's
        raise ValueError(f"seg_map_path: expected a .mat file, got '{path}': {error}") from error
    if 'groundTruth' not in table:
        names = ', '.join(name for name in table if not name.startswith('__')) or 'nothing'
        raise ValueError(f"seg_map_path: expected 'groundTruth' in '{path}', got {names}")
    try:
        maps = [person['Segmentation'][0, 0] for person in table['groundTruth'].ravel()]
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(
            "seg_map_path: expected a 'Segmentation' in every cell of 'groundTruth', got other "
            f"cells in '{path}'"
        ) from error
    bad = [m for m in maps if m.ndim != 2 or not np.issubdtype(m.dtype, np.integer)]
    if bad or not maps:
        got = f'{bad[0].dtype} of shape {bad[0].shape}' if bad else 'none'
        raise ValueError(
            f"seg_map_path: expected segmentations (H, W) of integers, got {got} in '{path}'"
        )
    return maps


def number_segments(segments: np.ndarray) -> np.ndarray:
    """Number the segments of a map from 0, without 255, which mmseg ignores.

    Args:
        segments: (H, W), integers.

    Returns:
        (H, W), int32, in the order of the numbers that came. The 256th segment is 256, and so on.
    """
    _, places = np.unique(segments, return_inverse=True)
    places = places.reshape(segments.shape).astype(np.int32)
    return places + (places >= IGNORED)


@TRANSFORMS.register_module()
class LoadBSDSAnnotations(BaseTransform):
    """Load the segmentations of an image of BSDS500, numbered from 0 without 255.

    With one of them, ``gt_seg_map``, int32 (H, W), follows the image through any transform. With
    all of them ``annotations``, int32 (A, H, W), is there as well, which no transform changes: none
    that moves pixels may follow, and the test pipeline ends in
    ``PackSegInputs(meta_keys=(..., 'annotations'))``.

    Args:
        annotator: ``'random'`` draws one whenever an image is loaded, an int is one's place in the
            file, from 0, and ``'all'`` loads all, with the first as ``gt_seg_map``.
        backend_args: mmengine's arguments of the files' backend. Default: chosen by the path.

    Raises:
        ImportError: SciPy is not installed.
        TypeError: ``annotator`` is neither a str nor an int.
        ValueError: Another ``annotator``, one that an image does not have, a file that does not
            have the published structure, or segments of another size than the image.
    """

    def __init__(self, annotator: str | int = 'random', backend_args: dict | None = None):
        if annotator not in ('random', 'all'):
            if isinstance(annotator, str):
                raise ValueError(
                    f"annotator: expected 'random', 'all' or an int, got {annotator!r}"
                )
            check_int('annotator', annotator, low=0)
        self.annotator = annotator
        self.backend_args = backend_args

    @cache_randomness
    def draw(self, count: int) -> int:
        """Draw one of ``count`` segmentations by NumPy's global generator, as mmseg draws."""
        return int(np.random.randint(count))  # noqa: NPY002  mmengine seeds this one

    def transform(self, results: dict) -> dict:
        """Add ``gt_seg_map``, and ``annotations`` of all, unless there is no ``seg_map_path``.

        To predict an image without truth, mmseg runs all transforms but those it knows.
        """
        if 'seg_map_path' not in results:
            return results
        path = results['seg_map_path']
        maps = read_segmentations(path, self.backend_args)
        size = tuple(results.get('ori_shape') or results['img'].shape)[:2]
        for place, segments in enumerate(maps):
            if segments.shape != size:
                raise ValueError(
                    f'seg_map_path: expected segments of {size[0]} x {size[1]} pixels, as the '
                    f"image '{results.get('img_path')}' has, got {segments.shape[0]} x "
                    f"{segments.shape[1]} from annotator {place} of '{path}'"
                )
        if self.annotator == 'all':
            annotations = np.stack([number_segments(segments) for segments in maps])
            results['annotations'] = annotations
            # The copy's transforms would change the annotations otherwise.
            results['gt_seg_map'] = annotations[0].copy()
        else:
            place = self.draw(len(maps)) if self.annotator == 'random' else self.annotator
            if place >= len(maps):
                raise ValueError(
                    f"annotator: expected one of the {len(maps)} in '{path}', 0 to "
                    f'{len(maps) - 1}, got {place}'
                )
            results['gt_seg_map'] = number_segments(maps[place])
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(annotator={self.annotator!r})'


@TRANSFORMS.register_module()
class ConvertToLab(BaseTransform):
    """Convert the image to CIELAB, float32: L from 0 to 100, a and b around 0.

    The image is sRGB and white is D65. It stays in floating point, as 8 bits a channel are off by
    up to 2.2. A data preprocessor must not exchange channels afterwards.

    Raises:
        ImportError: scikit-image is not installed.
        TypeError: The image is not uint8.
        ValueError: It has not three channels.
    """

    def __init__(self):
        with require('scikit-image', 'ConvertToLab', 'scikit-image'):
            import skimage.color  # noqa: F401  now, and not at the first image

    def transform(self, results: dict) -> dict:
        """Convert ``img``, (H, W, 3), uint8, BGR as mmcv loads it."""
        # OpenCV's own conversion interpolates in a table and is off by up to 0.4.
        from skimage.color import rgb2lab

        image = results['img']
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f'img: expected an image (H, W, 3), got shape {image.shape}')
        if image.dtype != np.uint8:
            raise TypeError(f'img: expected uint8, BGR, got {image.dtype}')
        results['img'] = rgb2lab(image[..., ::-1].astype(np.float32) / 255).astype(np.float32)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
