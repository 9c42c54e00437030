"""CamVid with the 11 classes that SegNet is judged by."""

from collections.abc import Sequence
from typing import ClassVar

from mmseg.registry import DATASETS

from .paired_images import PairedImageDataset

UNLABELLED = 11


@DATASETS.register_module()
class CamVidDataset(PairedImageDataset):
    """The Cambridge-driving Labelled Video Database in SegNet's version of 11 classes.

    Brostow et al., ECCV 2008; Badrinarayanan et al., 2017: 367 images to train on, 101 to validate
    and 233 to test, 360 x 480. An image ``images/training/NAME.png`` (or ``.jpg``) has its labels
    in ``annotations/training/NAME.png``, one channel with the indices of `METAINFO` 's classes and
    11 where nothing is labelled, which becomes 255 and is ignored.

    Args:
        img_suffix: As in `PairedImageDataset`. Default: that of the images there.
        **kwargs: ``BaseSegDataset``'s arguments: ``data_root``, ``data_prefix``, ``metainfo``.

    Raises:
        FileNotFoundError: When the data are loaded: a folder is missing or empty, or an image or a
            label map has no partner.
        ValueError: When the data are loaded: of 32 pairs one has two sizes.
    """

    METAINFO: ClassVar[dict] = dict(
        classes=(
            'sky',
            'building',
            'pole',
            'road',
            'pavement',
            'tree',
            'sign',
            'fence',
            'car',
            'pedestrian',
            'bicyclist',
        ),
        palette=[
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [60, 40, 222],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
        ],
    )

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> dict[int, int]:
        """Map the labels in the files to those of the classes in use, the rest to 255.

        Args:
            new_classes: Classes in use. Default: all.

        Returns:
            Label in a file, to what becomes of it, where that differs.
        """
        return {**(super().get_label_map(new_classes) or {}), UNLABELLED: 255}
