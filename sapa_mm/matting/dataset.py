"""Foregrounds with alphas to put on backgrounds, and merged images to test on."""

import os
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from ..ops.checks import check_bool
from .files import images_by_stem, list_images


@DATASETS.register_module()
class CompositionDataset(BaseDataset):
    """The Composition-1k data set (Xu et al., Deep Image Matting, 2017), or any data in its layout.

    To train, an item is a foreground ``fg`` with the alpha of its name, and `prepare_data` draws a
    background and a second foreground for it. To test, it is a merged image ``img``, with its alpha
    and trimap: those of its name ``NAME_k`` or, if there are none, of ``NAME``, so that all the
    images of a foreground may share them. Files differ in the suffix as they like: .png, .jpg,
    .jpeg, .bmp, .tif or .tiff.

    Args:
        data_root: The folder that ``data_prefix`` is relative to.
        data_prefix: Folders: ``fg``, ``alpha`` and ``bg`` to train, ``img``, ``alpha`` and
            ``trimap`` to test. Default: the published ones, ``Training_set/fg``, ``.../alpha`` and
            ``.../bg``, or ``Test_set/merged``, ``.../alpha`` and ``.../trimaps``; those that are
            not given stay.
        test_mode: Whether the data are those to test.
        pipeline: Transforms.
        **kwargs: ``BaseDataset``'s other arguments. There is no ``ann_file``; ``indices`` chooses
            items.

    Raises:
        TypeError: There is an ``ann_file``, or ``test_mode`` is not a bool.
        ValueError: ``data_prefix`` has unknown folders; images in one folder differ by the suffix
            alone; a merged image may have two alphas or trimaps.
        FileNotFoundError: A folder is missing or holds no image, or an image has no alpha or
            trimap. These are raised when the data are loaded, like those of the files' names.
    """

    METAINFO: ClassVar[dict] = dict(dataset_type='CompositionDataset', task_name='matting')

    def __init__(
        self,
        data_root: str = '',
        data_prefix: Mapping[str, str] | None = None,
        test_mode: bool = False,
        pipeline: list | tuple = (),
        **kwargs: object,
    ):
        if kwargs.get('ann_file'):
            raise TypeError(
                'ann_file: expected none, as the folders say what there is; indices chooses items'
            )
        check_bool('test_mode', test_mode)
        if test_mode:
            folders = dict(img='Test_set/merged', alpha='Test_set/alpha', trimap='Test_set/trimaps')
        else:
            folders = dict(fg='Training_set/fg', alpha='Training_set/alpha', bg='Training_set/bg')
        unknown = [key for key in data_prefix or () if key not in folders]
        if unknown:
            raise ValueError(
                f'data_prefix: expected {", ".join(folders)} with test_mode={test_mode}, got '
                f'{", ".join(unknown)}'
            )
        self._backgrounds: list[str] = []
        super().__init__(
            data_root=data_root,
            data_prefix={**folders, **(data_prefix or {})},
            test_mode=test_mode,
            pipeline=list(pipeline),
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """List the items, ``fg_path`` and ``alpha_path``, or ``img_path``, those and trimaps."""
        if self.test_mode:
            images = self._list('img')
            partners = {
                f'{key}_path': self._partners(images, key, shared=True)
                for key in ('alpha', 'trimap')
            }
            return [
                dict(img_path=path, **{key: paths[stem] for key, paths in partners.items()})
                for stem, path in images.items()
            ]
        foregrounds = self._list('fg')
        alphas = self._partners(foregrounds, 'alpha', shared=False)
        self._backgrounds = list_images(self.data_prefix['bg'], "data_prefix['bg']")
        return [dict(fg_path=path, alpha_path=alphas[stem]) for stem, path in foregrounds.items()]

    def prepare_data(self, idx: int) -> object:
        """Run the pipeline on an item; to train, on a background and a second foreground as well.

        Both are drawn uniformly by NumPy's global generator, which mmengine seeds in every worker.

        Args:
            idx: The item's place.

        Returns:
            What the pipeline makes of ``fg_path``, ``alpha_path``, ``bg_path`` and ``second``, the
            ``fg_path`` and ``alpha_path`` of another item (of the same one if it is the only one);
            to test, of ``img_path``, ``alpha_path`` and ``trimap_path``.
        """
        info = self.get_data_info(idx)
        if not self.test_mode:
            name = self._backgrounds[np.random.randint(len(self._backgrounds))]  # noqa: NPY002
            info['bg_path'] = os.path.join(self.data_prefix['bg'], name)
            # Any step but a whole round leads to another item.
            step = np.random.randint(1, max(len(self), 2))  # noqa: NPY002
            other = self.get_data_info(int(info['sample_idx'] + step) % len(self))
            info['second'] = {key: other[key] for key in ('fg_path', 'alpha_path')}
        return self.pipeline(info)

    def _list(self, key: str) -> dict[str, str]:
        """List the images of a folder of ``data_prefix`` by their names without the suffix."""
        return images_by_stem(self.data_prefix[key], f"data_prefix['{key}']")

    def _partners(self, images: Mapping[str, str], key: str, *, shared: bool) -> dict[str, str]:
        """Find the alphas or the trimaps of images.

        Args:
            images: Paths by names.
            key: The folder in ``data_prefix`` of what is wanted.
            shared: Whether ``NAME`` belongs to every ``NAME_k``.

        Returns:
            Paths by the images' names.

        Raises:
            FileNotFoundError: An image has none.
            ValueError: An image has two: its own name's is there and so is the one to share, and
                other images have to share, so that nothing says which of the two is meant.
        """
        files = self._list(key)
        # Where each image has its own, a shorter name is another image's.
        shared = shared and any(stem not in files for stem in images)
        found = {}
        for stem, path in images.items():
            name, _, number = stem.rpartition('_')
            stems = [stem, name] if shared and number.isdecimal() else [stem]
            paths = [files[s] for s in stems if s in files]
            if not paths:
                raise FileNotFoundError(
                    f"data_prefix['{key}']: expected {' or '.join(map(repr, stems))} (.png or "
                    f"another suffix) for '{path}', got no such file in '{self.data_prefix[key]}'"
                )
            if len(paths) > 1:
                raise ValueError(
                    f"data_prefix['{key}']: expected one file for '{path}', got '{paths[0]}' and "
                    f"'{paths[1]}'; give every image a file of its own name, or rename one"
                )
            found[stem] = paths[0]
        return found
