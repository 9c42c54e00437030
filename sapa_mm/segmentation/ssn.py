"""SSN, superpixels from learnt features, with bilinear upsampling or HC's soft clustering."""

import math
from collections.abc import Mapping, Sequence

import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.nn import functional as F

from ..ops import Assignment, soft_slic
from ..ops.checks import check_bool, check_int, check_positive, check_positive_int
from .bsds import IGNORED
from .connectivity import connect_superpixels
from .ssn_features import SSNFeatures
from .superpixels import to_original

# Fragments below this share of a superpixel's mean size are merged into a neighbour.
LEAST_SHARE = 0.06
# The logarithm of a probability below this counts as this one's.
LEAST_PROBABILITY = 1e-8


def superpixel_grid(number: int, size: Sequence[int]) -> tuple[int, int]:
    r"""Lay about so many superpixels out in a grid of about square cells.

    .. math:: k_h = \lfloor\sqrt{K H / W}\rfloor, \qquad k_w = \lfloor\sqrt{K W / H}\rfloor

    Args:
        number: K, how many are wanted.
        size: (H, W) of the image, in pixels.

    Returns:
        (k_h, k_w).

    Raises:
        TypeError: ``number`` is no int.
        ValueError: More superpixels than pixels, or so few that the grid would be empty.
    """
    check_positive_int('number', number)
    height, width = size
    if number > height * width:
        raise ValueError(
            f'number: expected at most {height * width} superpixels, the pixels of an image of '
            f'{height} x {width}, got {number}'
        )
    grid = math.isqrt(number * height // width), math.isqrt(number * width // height)
    if 0 in grid:
        least = -(-max(size) // min(size))
        raise ValueError(
            f'number: expected at least {least} superpixels for an image of {height} x {width}, '
            f'got {number}'
        )
    return grid


@MODELS.register_module()
class SSN(BaseSegmentor):
    r"""Superpixel sampling network: SLIC on learnt features, trained through.

    The pixels, float Lab and position, get features from `SSNFeatures`, and `soft_slic` groups
    them. The loss encodes the labels' one-hot vectors R into superpixels and back,

    .. math:: L = -\log\, (\tilde Q \hat Q^\top R)_{\text{true}} +
        \lambda\, \lVert x - \tilde{H} \hat Q^\top x \rVert^2

    with the assignment :math:`\tilde Q`, its normalized transpose :math:`\hat Q^\top`, the hard
    assignment :math:`\tilde H` and positions x in pixels (SSN: Jampani et al., ECCV 2018). With
    ``clustering_cfg`` it is HCSSN (HC: Implicit Integration of Superpixel Segmentation into Fully
    Convolutional Networks, Suzuki, 2021, section 4.3).

    It predicts ``pred_superpixels``, for `SuperpixelMetric`: (numbers, H, W), int64, in an image's
    original size, with the ``numbers`` of superpixels that were asked for in its meta information.
    What comes out is the grid of `superpixel_grid`, or, connected, what is left of it.

    Args:
        clustering_cfg: Options of `SoftClustering`, by which features are upsampled. Default: none,
            which is SSN, with bilinear interpolation.
        seeds: The clusters of ``clustering_cfg``, see `SSNFeatures`.
        base_channels: Channels of the network.
        feature_channels: Channels that are learnt, beside the five of the input.
        color_scale: What Lab is multiplied by.
        position_scale: What positions are multiplied by, in cells of the grid.
        compactness_weight: :math:`\lambda`, of the mean over pixels. Another published form is
            about 2,500 times as strong.
        train_cfg: ``num_superpixels`` (default: 169) and ``iterations`` (default: 5).
        test_cfg: ``numbers`` of superpixels (default: (100,)), ``iterations`` (default: 10), and
            ``connectivity`` (default: True): whether fragments below 0.06 of the mean size are
            merged into a neighbour, and every superpixel is one region.
        data_preprocessor: Of mmseg. Images are floating point Lab, of `ConvertToLab`.
        pretrained: A checkpoint to start from, which mmseg's segmentors take by this name.
        init_cfg: As in every mmengine module.

    Raises:
        TypeError: An argument of the wrong type, or an unknown option.
        ValueError: An unknown choice, a number that is out of range, or ``pretrained`` together
            with ``init_cfg``.
    """

    def __init__(
        self,
        clustering_cfg: Mapping | None = None,
        seeds: str = 'pool',
        base_channels: int = 64,
        feature_channels: int = 15,
        color_scale: float = 0.26,
        position_scale: float = 2.5,
        compactness_weight: float = 1e-5,
        train_cfg: Mapping | None = None,
        test_cfg: Mapping | None = None,
        data_preprocessor: dict | None = None,
        pretrained: str | None = None,
        init_cfg: dict | None = None,
    ):
        if pretrained is not None:
            if init_cfg is not None:
                raise ValueError(f'pretrained: expected None with init_cfg, got {pretrained!r}')
            init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        super().__init__(data_preprocessor, init_cfg)
        check_positive('color_scale', color_scale)
        check_positive('position_scale', position_scale)
        if compactness_weight != 0:
            check_positive('compactness_weight', compactness_weight)
        self.color_scale = color_scale
        self.position_scale = position_scale
        self.compactness_weight = compactness_weight
        self.train_cfg = _read_options(
            'train_cfg', train_cfg, dict(num_superpixels=169, iterations=5)
        )
        self.test_cfg = _read_options(
            'test_cfg', test_cfg, dict(numbers=(100,), iterations=10, connectivity=True)
        )
        check_positive_int('num_superpixels', self.train_cfg['num_superpixels'])
        for options in (self.train_cfg, self.test_cfg):
            check_positive_int('iterations', options['iterations'])
        check_bool('connectivity', self.test_cfg['connectivity'])
        numbers = self.test_cfg['numbers']
        if not isinstance(numbers, Sequence) or not numbers:
            raise TypeError(f'numbers: expected a sequence of ints, got {numbers!r}')
        for number in numbers:
            check_int('numbers', number, low=1)
        self.features = SSNFeatures(
            base_channels=base_channels,
            feature_channels=feature_channels,
            clustering_cfg=clustering_cfg,
            seeds=seeds,
        )

    def extract_feat(self, inputs: Tensor, number: int | None = None) -> Tensor:
        """Compute the features of pixels for so many superpixels.

        Args:
            inputs: Float Lab (N, 3, H, W), L from 0 to 100.
            number: How many superpixels are wanted. Default: the number of training.

        Returns:
            (N, feature_channels + 5, H, W), the last five scaled colour and position (row, column).

        Raises:
            ValueError: The number does not fit the image.
        """
        size = inputs.shape[2:]
        grid = superpixel_grid(number or self.train_cfg['num_superpixels'], size)
        scale = self.position_scale * max(
            cells / side for cells, side in zip(grid, size, strict=True)
        )
        position = scale * _positions(inputs)
        color = self.color_scale * inputs
        return self.features(torch.cat([color, position.expand(len(inputs), -1, -1, -1)], 1))

    def encode_decode(
        self,
        inputs: Tensor,
        batch_data_samples: Sequence[SegDataSample] | None = None,
        number: int | None = None,
        iterations: int | None = None,
    ) -> Assignment:
        """Assign the pixels to superpixels.

        Args:
            inputs: Float Lab (N, 3, H, W).
            batch_data_samples: Not used.
            number: How many superpixels are wanted. Default: the number of training.
            iterations: How often pixels are assigned. Default: as in training.

        Returns:
            The assignment of all pixels to the grid.
        """
        number = number or self.train_cfg['num_superpixels']
        grid = superpixel_grid(number, inputs.shape[2:])
        features = self.extract_feat(inputs, number)
        return soft_slic(features, grid, iterations or self.train_cfg['iterations'])

    def _forward(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None
    ) -> Tensor:
        """Return the weights of the assignment, (N, 9, H, W)."""
        return self.encode_decode(inputs).weights

    def loss(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            inputs: Float Lab (N, 3, H, W).
            data_samples: With ``gt_sem_seg``, (1, H, W): segments of any number, of which 255 is
                ignored.

        Returns:
            ``loss_reconstruction`` and ``loss_compactness``.
        """
        assignment = self.encode_decode(inputs)
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in data_samples])
        with torch.autocast(inputs.device.type, enabled=False):
            losses = dict(loss_reconstruction=_reconstruction_loss(assignment, labels))
            if self.compactness_weight:
                compactness = _compactness_loss(assignment)
                losses['loss_compactness'] = self.compactness_weight * compactness
        return losses

    def predict(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Find the superpixels, for every number in ``test_cfg``.

        Args:
            inputs: Float Lab (N, 3, H, W).
            data_samples: Their data samples. Default: images in their original size.

        Returns:
            The data samples with ``pred_superpixels``.

        Raises:
            ValueError: A number that does not fit the images.
        """
        numbers = tuple(self.test_cfg['numbers'])
        samples = [SegDataSample() for _ in inputs] if data_samples is None else data_samples
        found: list[list[Tensor]] = [[] for _ in inputs]
        for number in numbers:
            iterations = self.test_cfg['iterations']
            labels = self.encode_decode(inputs, number=number, iterations=iterations).labels()
            for i, sample in enumerate(samples):
                meta = dict(ori_shape=tuple(inputs.shape[2:])) | sample.metainfo
                found[i].append(self._finish(to_original(labels[i], meta), number))
        for sample, maps in zip(samples, found, strict=True):
            sample.pred_superpixels = PixelData(
                data=torch.stack(maps), metainfo=dict(numbers=numbers)
            )
        return list(samples)

    def _finish(self, labels: Tensor, number: int) -> Tensor:
        """Connect superpixels (H, W), if that is wanted."""
        if not self.test_cfg['connectivity']:
            return labels
        least = LEAST_SHARE * labels.numel() / number
        connected = connect_superpixels(labels.cpu().numpy(), least)
        return torch.from_numpy(connected).to(labels)


def _read_options(name: str, options: Mapping | None, defaults: dict) -> dict:
    """Return the options over their defaults; raise TypeError for others."""
    options = {} if options is None else options
    if not isinstance(options, Mapping) or options.keys() - defaults:
        expected = ', '.join(defaults)
        raise TypeError(f'{name}: expected a dict with some of {expected}, got {options!r}')
    return defaults | dict(options)


def _positions(like: Tensor) -> Tensor:
    """Return the rows and columns of a map's pixels, (1, 2, H, W)."""
    rows, columns = (
        torch.arange(side, device=like.device, dtype=like.dtype) for side in like.shape[2:]
    )
    return torch.stack(torch.meshgrid(rows, columns, indexing='ij'))[None]


def _reconstruction_loss(assignment: Assignment, labels: Tensor) -> Tensor:
    """Return the mean of -log of what comes back of the labels (N, H, W) at the true one."""
    known = labels != IGNORED
    numbers = torch.zeros_like(labels)
    for number, label, valid in zip(numbers, labels, known, strict=True):
        # A crop's segments are numbered anew, so that there may be any number of them.
        number[valid] = label[valid].unique(return_inverse=True)[1]
    one_hot = F.one_hot(numbers).permute(0, 3, 1, 2).to(assignment.weights.dtype)
    counted = Assignment(assignment.weights * known[:, None], assignment.size)
    decoded = assignment.decode(counted.average(one_hot))
    probability = decoded.gather(1, numbers[:, None])[:, 0]
    log = probability.clamp(min=LEAST_PROBABILITY).log()
    return -(log * known).sum() / known.sum().clamp(min=1)


def _compactness_loss(assignment: Assignment) -> Tensor:
    """Return the mean squared distance of pixels to the mean of their superpixel, in pixels."""
    position = _positions(assignment.weights).expand(len(assignment.weights), -1, -1, -1)
    mean = assignment.decode(assignment.average(position), hard=True)
    return (position - mean).square().sum(1).mean()
