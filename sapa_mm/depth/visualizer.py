"""Pictures of depth from a run, in one scale of colours from the first image to the last."""

import cv2
import mmcv
import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.structures import PixelData
from mmseg.registry import VISUALIZERS
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

from ..ops.checks import check_positive
from ..visualization import depths_to_rgb


@VISUALIZERS.register_module()
class DepthVisualizer(SegLocalVisualizer):
    """Draw image, true depth and predicted depth side by side, and their scale below.

    The scale is that of ``max_depth`` in all pictures of a run, while mmseg's visualizer scales
    every map by its own range. mmseg's hook calls it::

        visualizer = dict(
            type='DepthVisualizer', vis_backends=[dict(type='LocalVisBackend')], max_depth=10.0
        )
        default_hooks = dict(
            visualization=dict(type='SegVisualizationHook', draw=True, interval=50)
        )

    Samples without depth are drawn as by mmseg's.

    Args:
        name: Name of the instance. Default: ``'visualizer'``.
        max_depth: The depth of the last colour, in metres, positive; 0 has the first one.
            Default: 10.
        **kwargs: The arguments of ``SegLocalVisualizer``: ``vis_backends``, ``save_dir`` and so on.

    Raises:
        TypeError: ``max_depth`` is no number.
        ValueError: ``max_depth`` is not positive and finite.
    """

    def __init__(self, name: str = 'visualizer', *, max_depth: float = 10.0, **kwargs: object):
        check_positive('max_depth', max_depth)
        super().__init__(name, **kwargs)
        self.max_depth = float(max_depth)

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: SegDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        step: int = 0,
        **options: object,
    ) -> None:
        """Draw a sample and give the picture to all backends, a window or a file.

        Args:
            name: Name of the picture.
            image: (H, W, 3), uint8, RGB.
            data_sample: Has the true depth, the predicted one or both, in metres, not known where
                not positive. Default: none.
            draw_gt: Whether the true depth is drawn. Default: True.
            draw_pred: Whether the predicted depth is drawn. Default: True.
            show: Whether a window shows the picture as well. Default: False.
            wait_time: Seconds for which it does. Default: 0, until a key is pressed.
            out_file: File that gets the picture in the backends' place. Default: none.
            step: Its number. Default: 0.
            **options: Those that ``SegLocalVisualizer`` has for segmentations.
        """
        sample = SegDataSample() if data_sample is None else data_sample
        if 'gt_depth_map' not in sample and 'pred_depth_map' not in sample:
            super().add_datasample(
                name,
                image,
                data_sample,
                draw_gt=draw_gt,
                draw_pred=draw_pred,
                show=show,
                wait_time=wait_time,
                out_file=out_file,
                step=step,
                **options,
            )
            return
        maps = {}
        if draw_gt and 'gt_depth_map' in sample:
            maps['truth'] = sample.gt_depth_map
        if draw_pred and 'pred_depth_map' in sample:
            maps['prediction'] = sample.pred_depth_map
        picture = self._draw_depths(image, maps)
        self.set_image(picture)
        if show:
            self.show(picture, win_name=name, wait_time=wait_time)
        if out_file is None:
            self.add_image(name, picture, step)
        else:
            mmcv.imwrite(mmcv.rgb2bgr(picture), out_file)

    def _draw_depths(self, image: np.ndarray, maps: dict[str, PixelData]) -> np.ndarray:
        """Draw an image and depth maps side by side."""
        height, width = image.shape[:2]
        depths = {}
        for title, data in maps.items():
            depth = torch.as_tensor(data.data).detach().float().cpu().numpy().reshape(data.shape)
            # Of another size is what the pipeline resized; nearest keeps unknown depth apart.
            depths[title] = cv2.resize(depth, (width, height), interpolation=cv2.INTER_NEAREST)
        return depths_to_rgb(image, depths, (0.0, self.max_depth))
