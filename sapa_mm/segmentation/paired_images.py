"""Images and label maps of equal stems in two folders."""

from pathlib import PurePath

import mmcv
from mmengine import fileio
from mmseg.datasets import BaseSegDataset

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')
#: So many pairs, evenly spaced, have their sizes compared.
COMPARED = 32


class PairedImageDataset(BaseSegDataset):
    """mmseg's ``BaseSegDataset`` that checks that images and label maps are pairs.

    Args:
        img_suffix: Suffix of the images. Default: whichever of ``'.jpg'``, ``'.jpeg'`` and
            ``'.png'`` they have.
        **kwargs: ``BaseSegDataset``'s arguments: ``data_root``, ``data_prefix``.

    Raises:
        FileNotFoundError: When the data are loaded: a folder is missing or empty, or an image or a
            label map has no partner.
        ValueError: When the data are loaded: images of several suffixes, or of 32 pairs one with
            two sizes.
    """

    #: What the message about a pair with two sizes ends in.
    mismatch = 'they have to belong together, pixel by pixel'

    def __init__(self, img_suffix: str | None = None, **kwargs: object):
        super().__init__(img_suffix=img_suffix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images with the files of their labels."""
        images = self._stems('img_path', IMAGE_SUFFIXES if not self.img_suffix else self.img_suffix)
        suffixes = sorted(set(images.values()))
        if len(suffixes) > 1:
            raise ValueError(
                "img_suffix: expected one of the suffixes in data_prefix['img_path'] to take, as "
                f'{", ".join(suffixes)} are there, got none'
            )
        self.img_suffix = suffixes[0]
        if self.data_prefix.get('seg_map_path') and not self.ann_file:
            labels = self._stems('seg_map_path', self.seg_map_suffix)
            self._check_partners('label map', images, 'seg_map_path', labels, self.seg_map_suffix)
            self._check_partners('image', labels, 'img_path', images, self.img_suffix)
        data_list = super().load_data_list()
        for info in data_list[:: -(-len(data_list) // COMPARED)]:
            self._check_sizes(info)
        return data_list

    def _check_sizes(self, info: dict) -> None:
        """Raise ValueError unless an image and its labels have one size."""
        if 'seg_map_path' not in info:
            return
        image, labels = (self._size(info[key]) for key in ('img_path', 'seg_map_path'))
        if image != labels:
            raise ValueError(
                f"data_prefix: expected labels of {image} pixels for '{info['img_path']}', got "
                f"{labels} in '{info['seg_map_path']}': {self.mismatch}"
            )

    def _size(self, path: str) -> tuple[int, int]:
        """Return height and width of the image in a file."""
        data = fileio.get(path, backend_args=self.backend_args)
        height, width = mmcv.imfrombytes(data, flag='unchanged', backend='pillow').shape[:2]
        return height, width

    def _stems(self, key: str, suffix: str | tuple[str, ...]) -> dict[str, str]:
        """Return the stem of every file in a folder, below it, to its suffix."""
        folder = self.data_prefix.get(key) or ''
        if not fileio.isdir(folder, backend_args=self.backend_args):
            raise FileNotFoundError(f"data_prefix: expected a folder in {key}, got '{folder}'")
        names = fileio.list_dir_or_file(
            folder, list_dir=False, suffix=suffix, recursive=True, backend_args=self.backend_args
        )
        stems = {}
        for name in names:
            ending = suffix if isinstance(suffix, str) else PurePath(name).suffix
            stems[name.removesuffix(ending)] = ending
        if not stems:
            wanted = suffix if isinstance(suffix, str) else ', '.join(suffix)
            raise FileNotFoundError(
                f"data_prefix: expected files '*{wanted}' in {key}, got none in '{folder}'"
            )
        return stems

    def _check_partners(
        self, kind: str, stems: dict[str, str], key: str, partners: dict[str, str], suffix: str
    ) -> None:
        """Raise FileNotFoundError unless every stem has a partner."""
        missing = sorted(stems.keys() - partners.keys())
        if missing:
            more = f' and {len(missing) - 1} more' if len(missing) > 1 else ''
            raise FileNotFoundError(
                f'data_prefix: expected a partner of equal stem in {key} for every file, got no '
                f"{kind} '{fileio.join_path(self.data_prefix[key], missing[0] + suffix)}'{more}"
            )
