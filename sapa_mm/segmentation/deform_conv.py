"""Deformable convolution in every memory format."""

import torch
from mmcv.ops import ModulatedDeformConv2dPack, modulated_deform_conv2d
from torch import Tensor


class DeformConv(ModulatedDeformConv2dPack):
    """mmcv's DCNv2 layer, right for channels_last tensors too.

    mmcv's operator reads such tensors as if they were contiguous.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (N, in_channels, H, W).

        Returns:
            (N, out_channels, H', W'), contiguous.
        """
        predicted = self.conv_offset(x).contiguous()
        dtype = predicted.dtype
        if dtype == torch.bfloat16:  # the operator does not know it
            predicted = predicted.float()
        offset_y, offset_x, mask = predicted.chunk(3, dim=1)
        # A 1x1 weight is contiguous in either format, so `contiguous` would keep strides that the
        # operator's backward does not take.
        weight = self.weight.clone(memory_format=torch.contiguous_format)
        out = modulated_deform_conv2d(
            x.contiguous(),
            torch.cat((offset_y, offset_x), dim=1),
            mask.sigmoid(),
            weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deform_groups,
        )
        return out.to(dtype)
