"""What the depth heads share: losses on depth maps, predictions of the image's size."""

from collections.abc import Mapping, Sequence

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..ops.checks import check_positive


def known_part(sample: SegDataSample) -> Tensor:
    """Return a sample's true depth, (1, H, W), with 0, which is unknown, where it was padded."""
    depth = sample.gt_depth_map.data
    left, right, top, bottom = sample.metainfo.get('padding_size', (0, 0, 0, 0))
    height, width = depth.shape[1:]
    region = ..., slice(top, height - bottom), slice(left, width - right)
    known = torch.zeros_like(depth)
    known[region] = depth[region]
    return known


class DepthHead(BaseDecodeHead):
    """Base of the heads that mmseg's ``DepthEstimator`` takes for its ``decode_head``.

    A sub-class defines ``forward``, whose output its losses take together with the true depth, and,
    where that output is no depth, `to_depth`. The head has no classifier.

    Args:
        in_channels: Channels of the features, an int, or several with ``input_transform``.
        channels: Width of the head.
        loss_decode: Config of a loss, or of several: modules ``loss(output, depth)``.
        max_depth: The largest depth there is, in metres, positive. Default: 10.
        **kwargs: ``BaseDecodeHead``'s other arguments: ``in_index``, ``input_transform``,
            ``align_corners``, ``init_cfg``.

    Raises:
        TypeError: ``max_depth`` is no number.
        ValueError: ``max_depth`` is not positive and finite.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        channels: int,
        *,
        loss_decode: dict | Sequence[dict],
        max_depth: float = 10.0,
        **kwargs: object,
    ):
        check_positive('max_depth', max_depth)
        kwargs.setdefault('init_cfg', None)
        super().__init__(
            in_channels,
            channels,
            num_classes=1,
            threshold=0,  # of no use; without it the parent warns
            dropout_ratio=0,
            loss_decode=loss_decode,
            **kwargs,
        )
        # A parameter that nothing uses would stop training on several GPUs.
        del self.conv_seg
        self.max_depth = float(max_depth)

    def to_depth(self, output: Tensor) -> Tensor:
        """Turn what ``forward`` gives into depth.

        Args:
            output: (N, C, H, W).

        Returns:
            (N, 1, H, W), in metres.
        """
        return output

    def loss_by_feat(
        self, output: Tensor, batch_data_samples: Sequence[SegDataSample]
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            output: What ``forward`` gives, (N, C, H, W).
            batch_data_samples: Samples with a ``gt_depth_map`` of (1, H, W), in metres; where it
                is not positive, depth is not known.

        Returns:
            Losses by their names.

        Raises:
            ValueError: A sample without a ``gt_depth_map``.
        """
        for sample in batch_data_samples:
            if 'gt_depth_map' not in sample:
                raise ValueError(
                    'batch_data_samples: expected a gt_depth_map in each, as LoadDepthMap gives '
                    f'it, got {", ".join(sample.keys()) or "none"}'
                )
        depth = torch.stack([known_part(sample) for sample in batch_data_samples])
        output = self.fit(output, depth.shape[2:])
        losses: dict[str, Tensor] = {}
        modules = self.loss_decode
        for module in modules if isinstance(modules, nn.ModuleList) else [modules]:
            name = str(module.loss_name)
            losses[name] = losses.get(name, 0) + module(output, depth)
        return losses

    def predict(
        self, inputs: Sequence[Tensor], batch_img_metas: Sequence[Mapping], test_cfg: Mapping
    ) -> Tensor:
        """Predict depth, see ``BaseDecodeHead``.

        Raises:
            ValueError: ``test_cfg`` has the mode ``'slide'``, whose windows mmseg's
                ``DepthEstimator`` computes and then overwrites by a map of the whole image.
        """
        if (test_cfg or {}).get('mode') == 'slide':
            raise ValueError("test_cfg: expected mode 'whole' or 'slide_flip', got 'slide'")
        return super().predict(inputs, batch_img_metas, test_cfg)

    def predict_by_feat(self, output: Tensor, batch_img_metas: Sequence[Mapping]) -> Tensor:
        """Compute depth of the size of the network's input.

        Args:
            output: What ``forward`` gives, (N, C, H, W).
            batch_img_metas: Meta information of the images.

        Returns:
            (N, 1, Hi, Wi), in metres.
        """
        meta = batch_img_metas[0]
        # Sliding windows put their size, a torch.Size, into img_shape.
        window = isinstance(meta['img_shape'], torch.Size)
        size = meta['img_shape'] if window else meta.get('pad_shape', meta['img_shape'])
        return self.fit(self.to_depth(output), size[:2])

    def fit(self, output: Tensor, size: Sequence[int]) -> Tensor:
        """Bring a map to a size.

        Args:
            output: (N, C, H, W).
            size: (H, W). A map that is larger by one pixel, as one that has been doubled is at odd
                sizes, is cropped at the bottom and right; any other is interpolated.

        Returns:
            (N, C, *size).
        """
        height, width = size
        if 0 <= output.shape[2] - height <= 1 and 0 <= output.shape[3] - width <= 1:
            return output[..., :height, :width]
        return resize(
            output, tuple(size), mode='bilinear', align_corners=self.align_corners, warning=False
        )
