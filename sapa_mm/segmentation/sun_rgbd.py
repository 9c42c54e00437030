"""SUN RGB-D with 37 classes."""

from typing import ClassVar

from mmseg.registry import DATASETS

from .paired_images import PairedImageDataset

CLASSES = """wall floor cabinet bed chair sofa table door window bookshelf picture counter blinds
desk shelves curtain dresser pillow mirror floor_mat clothes ceiling books fridge tv paper towel
shower_curtain box whiteboard person night_stand toilet sink lamp bathtub bag"""


def _colour(index: int) -> list[int]:
    """Return the colour of a label as PASCAL VOC computes it, from the bits of the label."""
    return [
        sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3)
    ]


@DATASETS.register_module()
class SUNRGBDDataset(PairedImageDataset):
    """SUN RGB-D's colour images with 37 classes indoors.

    Song et al., CVPR 2015: 5,285 images to train on and 5,050 to test. An image
    ``images/train/NAME.jpg`` has its labels in ``annotations/train/NAME.png``, one channel, with 0
    where nothing is labelled, which is ignored, and the classes from 1.

    The usual archive of labels counts the test set from 1 to 5,050 and the training set from 5,051
    to 10,335, while the images start at 1 in each of the two. Pairs of equal numbers would be wrong
    ones: give every label map the stem of its own image first. As images have many sizes, pairs
    whose sizes differ show where that was forgotten.

    Args:
        img_suffix: As in `PairedImageDataset`. Default: that of the images there.
        **kwargs: ``BaseSegDataset``'s arguments: ``data_root``, ``data_prefix``, ``metainfo``.

    Raises:
        FileNotFoundError: When the data are loaded: a folder is missing or empty, or an image or a
            label map has no partner.
        ValueError: When the data are loaded: of 32 pairs one has two sizes.
    """

    mismatch = (
        'the label archive counts the test set from 1 and the training set from 5,051, the images '
        'both from 1; give labels the stems of their images'
    )
    METAINFO: ClassVar[dict] = dict(
        classes=tuple(CLASSES.split()),
        palette=[_colour(label) for label in range(1, 38)],
    )

    def __init__(self, img_suffix: str | None = None, **kwargs: object):
        super().__init__(img_suffix, reduce_zero_label=True, **kwargs)
