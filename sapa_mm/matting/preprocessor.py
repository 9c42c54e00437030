"""What makes a network's input of images and trimaps."""

import torch
from mmengine.model import ImgDataPreprocessor, stack_batch
from mmengine.registry import MODELS


@MODELS.register_module()
class MattingPreprocessor(ImgDataPreprocessor):
    """Normalize images, pad them to one size and put the trimap, divided by 255, behind them.

    What is padded has a trimap of 0: it is background, and known. All else is mmengine's
    ``ImgDataPreprocessor``, whose arguments it has.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch.

        Args:
            data: ``inputs``, images (3, H, W), and ``data_samples``, whose ``trimap`` (1, H, W) is
                0, 128 or 255.
            training: Not used.

        Returns:
            ``inputs`` (N, 4, H, W), float32, and ``data_samples``.

        Raises:
            ValueError: Fewer or more samples than images, a sample without a trimap, or one of
                another size than its image.
        """
        shapes = [(1, *image.shape[1:]) for image in data['inputs']]
        samples = data.get('data_samples') or []
        if len(samples) != len(shapes):
            raise ValueError(
                f'data_samples: expected one for each of {len(shapes)} images, got {len(samples)}'
            )
        for shape, sample in zip(shapes, samples, strict=True):
            trimap = sample.get('trimap')
            if trimap is None or tuple(trimap.data.shape) != shape:
                got = 'none' if trimap is None else tuple(trimap.data.shape)
                raise ValueError(
                    f'data_samples: expected a trimap of the size of its image, {shape}, got {got}'
                )
        data = super().forward(data, training)
        samples = data['data_samples']
        trimaps = stack_batch(
            [sample.trimap.data.float() / 255 for sample in samples], self.pad_size_divisor
        )
        data['inputs'] = torch.cat([data['inputs'], trimaps], 1)
        return data
