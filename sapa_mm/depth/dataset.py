"""Images with depth maps, in the layout that mmseg has NYU Depth v2 in."""

from pathlib import PurePath

from mmengine import fileio
from mmseg.datasets import NYUDataset
from mmseg.registry import DATASETS


@DATASETS.register_module()
class DepthMapDataset(NYUDataset):
    """mmseg's ``NYUDataset``, for any data in its layout.

    An image ``images/train/NAME.jpg`` has its depth in ``annotations/train/NAME.png``. Unlike the
    parent's, an ``ann_file`` chooses images, and names need no scene and no number.

    Args:
        ann_file: A text file, in ``data_root`` unless its path is absolute, with an image a line:
            its path below ``data_prefix['img_path']``, with or without the suffix. Default: all.
        **kwargs: ``NYUDataset``'s arguments: ``data_root``, ``data_prefix`` (``img_path`` and
            ``depth_map_path``), ``img_suffix`` and ``depth_map_suffix``.

    Raises:
        FileNotFoundError: When the data are loaded: there are no images, or one has no depth map.
    """

    def _get_category_id_from_filename(self, image_fname: str) -> int:
        """Return the scene's index, or -1 if the name has none; the parent needs a digit there."""
        if not any(map(str.isdigit, PurePath(image_fname).name)):
            return -1
        return super()._get_category_id_from_filename(image_fname)

    def load_data_list(self) -> list[dict]:
        """List the images with the files of their depth."""
        img_dir = self.data_prefix.get('img_path') or ''
        if not fileio.isdir(img_dir, backend_args=self.backend_args):
            raise FileNotFoundError(
                f"data_prefix: expected a folder of images in img_path, got '{img_dir}'"
            )
        found = {self._stem(info['img_path']): info for info in super().load_data_list()}
        if not found:
            raise FileNotFoundError(
                f"data_prefix: expected images '*{self.img_suffix}' in img_path, got none in "
                f"'{img_dir}'"
            )
        if self.ann_file:
            text = fileio.get_text(self.ann_file, backend_args=self.backend_args)
            names = [line.strip() for line in text.splitlines() if line.strip()]
            stems = [name.removesuffix(self.img_suffix) for name in names]
            missing = next((stem for stem in stems if stem not in found), None)
            if missing is not None:
                raise FileNotFoundError(
                    f"ann_file: expected images below '{img_dir}', got '{missing}' in "
                    f"'{self.ann_file}', which is not there"
                )
            found = {stem: found[stem] for stem in stems}
        for info in found.values():
            depth = info.get('depth_map_path')
            if depth and not fileio.exists(depth, backend_args=self.backend_args):
                raise FileNotFoundError(
                    f"data_prefix: expected a depth map for '{info['img_path']}', got no '{depth}'"
                )
        return list(found.values())

    def _stem(self, path: str) -> str:
        """Return an image's path below the folder of images, without its suffix."""
        root = str(self.data_prefix['img_path']).rstrip('/') + '/'
        return path.removeprefix(root).removesuffix(self.img_suffix)
