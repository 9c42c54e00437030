"""Soft clustering: assign points to the clusters around them, and decode by the assignment."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..ops import local_similarity, point_affiliation
from ..ops.assignment import Assignment, inside_grid
from ..ops.checks import (
    check_bool,
    check_choice,
    check_kernel_size,
    check_positive,
    check_positive_int,
)
from ..ops.layout import accumulation_dtype
from ..ops.parents import upsample_parent
from .base import SelfInitialized, Upsampler
from .checks import check_features
from .registration import MODELS

# `assemble`, which applies an assignment, knows nothing beyond the image's edge.
BORDERS = ('zero', 'mask')
# A vector shorter than this has no direction.
NORM_EPS = 1e-4


def _normalize(x: Tensor) -> Tensor:
    """Divide the vectors of a map (N, C, H, W) by their norms; one without direction stays."""
    wide = x.to(accumulation_dtype(x.dtype))
    norm = wide.norm(dim=1, keepdim=True)
    # It is no floor under the norm, which would divide the gradient of a vector of zeros.
    return (wide / norm.masked_fill(norm < NORM_EPS, 1)).to(x.dtype)


def superpixels(assignments: Sequence[Assignment], size: tuple[int, int]) -> list[Tensor]:
    """Follow every pixel to its likeliest cluster, and on to that cluster's.

    Args:
        assignments: Fine to coarse, each to the grid whose points the next one assigns.
        size: (height, width) of the image. Its pixels belong to their parents in the finest grid.

    Returns:
        For each level, fine to coarse, the places of the clusters in their grid, row * W + column,
        (N, height, width), int64.

    Raises:
        ValueError: No assignments, or grids that do not follow each other.
    """
    if not assignments:
        raise ValueError('assignments: expected at least one, got none')
    labels: list[Tensor] = []
    grid = None
    for assignment in assignments:
        own = assignment.labels()
        if grid is not None:
            if tuple(own.shape[1:]) != grid:
                raise ValueError(
                    f'assignments: expected one of the points {grid}, the clusters of the one '
                    f'before, got {tuple(own.shape[1:])}'
                )
            own = own.flatten(1).gather(1, labels[-1].flatten(1)).view_as(labels[-1])
        labels.append(own)
        grid = assignment.size
    return [upsample_parent(level[:, None], size)[:, 0] for level in labels]


class SoftClustering(SelfInitialized):
    r"""Assign the points of a feature to the clusters of a coarser one.

    With the points x, the clusters s, projections Wq and Wk without bias, and the parent l of the
    point l':

    .. math::
        A_{l'}(p) = \mathrm{softmax}_p\; \langle \hat{W_q x_{l'}},\, \hat{W_k s_{l+p}} \rangle / T

    over the K x K clusters l + p around the parent, where the hat is division by the Euclidean norm
    (HC: Implicit Integration of Superpixel Segmentation into Fully Convolutional Networks, Suzuki,
    2021). It is `point_affiliation` in two halves: `forward` gives the assignment, whose ``decode``
    applies it, to any number of maps.

    Args:
        in_channels: Channels of the points.
        cluster_channels: Channels of the clusters. Default: ``in_channels``.
        embed_dims: Width of the projections.
        kernel_size: K, odd.
        normalize: Whether similarity is the cosine; otherwise the inner product.
        temperature: T.
        border: Clusters outside the image have similarity 0 and value 0 (``'zero'``), or there are
            none (``'mask'``).
        init_cfg: As in every mmengine module. Default: PyTorch's own.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An unknown choice, an even ``kernel_size``, or a number that is not positive.
    """

    def __init__(
        self,
        in_channels: int,
        cluster_channels: int | None = None,
        embed_dims: int = 64,
        kernel_size: int = 3,
        normalize: bool = True,
        temperature: float = 0.07,
        border: str = 'zero',
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        cluster_channels = in_channels if cluster_channels is None else cluster_channels
        check_positive_int('in_channels', in_channels)
        check_positive_int('cluster_channels', cluster_channels)
        check_positive_int('embed_dims', embed_dims)
        check_kernel_size(kernel_size)
        check_bool('normalize', normalize)
        check_positive('temperature', temperature)
        check_choice('border', border, BORDERS)
        self.in_channels = in_channels
        self.cluster_channels = cluster_channels
        self.embed_dims = embed_dims
        self.kernel_size = kernel_size
        self.normalize = normalize
        self.temperature = temperature
        self.border = border
        self.query_proj = nn.Conv2d(in_channels, embed_dims, 1, bias=False)
        self.key_proj = nn.Conv2d(cluster_channels, embed_dims, 1, bias=False)

    def reset_parameters(self) -> None:
        """Initialize the projections as PyTorch does."""
        self.query_proj.reset_parameters()
        self.key_proj.reset_parameters()

    def embed(self, points: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
        """Project both features to what is compared.

        Args:
            points: (N, in_channels, Hg, Wg).
            clusters: (N, cluster_channels, H, W), not larger.

        Returns:
            Query (N, embed_dims, Hg, Wg) and key (N, embed_dims, H, W).

        Raises:
            TypeError: Not floating point tensors, or, without autocast, of two dtypes.
            ValueError: Shapes that do not fit the module or each other.
        """
        check_features(
            clusters, points, self.cluster_channels, self.in_channels, ('clusters', 'points')
        )
        query, key = self.query_proj(points), self.key_proj(clusters)
        if self.normalize:
            query, key = _normalize(query), _normalize(key)
        return query, key

    def forward(self, points: Tensor, clusters: Tensor) -> Assignment:
        """Assign the points.

        Args:
            points: (N, in_channels, Hg, Wg).
            clusters: (N, cluster_channels, H, W), not larger.

        Returns:
            The assignment, its weights (N, K*K, Hg, Wg) in the dtype of the points, under autocast
            in float32.

        Raises:
            TypeError: Not floating point tensors, or, without autocast, of two dtypes.
            ValueError: Shapes that do not fit the module or each other.
        """
        query, key = self.embed(points, clusters)
        scores = local_similarity(
            query, key, kernel_size=self.kernel_size, temperature=self.temperature
        )
        size = tuple(clusters.shape[2:])
        if self.border == 'mask':
            inside = inside_grid(size, points.shape[2:], self.kernel_size, scores.device)
            scores = scores.masked_fill(~inside, float('-inf'))
        return Assignment(scores.softmax(1), size)

    def extra_repr(self) -> str:
        """Show the options that no sub-module shows."""
        return (
            f'kernel_size={self.kernel_size}, normalize={self.normalize}, '
            f'temperature={self.temperature}, border={self.border!r}'
        )


@MODELS.register_module()
class SoftClusteringUpsampler(Upsampler):
    """Upsample a decoder feature by the soft clustering of an encoder feature.

    It is `SoftClustering` with the guide for points and the decoder feature for clusters and for
    values, in one operator, and gives what ``clustering(guide, x).decode(x)`` gives.

    Args:
        in_channels: Channels C of x.
        guide_channels: Channels Cy of the guide. Default: ``in_channels``.
        embed_dims: Width of the projections.
        kernel_size: K, odd.
        normalize: Whether similarity is the cosine; otherwise the inner product.
        temperature: What the similarities are divided by.
        border: What lies outside the image: ``'zero'`` (similarity 0, value 0) or ``'mask'``
            (nothing).
        init_cfg: As in every mmengine module. Default: PyTorch's own.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An unknown choice, an even ``kernel_size``, or a number that is not positive.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        embed_dims: int = 64,
        kernel_size: int = 3,
        normalize: bool = True,
        temperature: float = 0.07,
        border: str = 'zero',
        init_cfg: dict | None = None,
    ):
        super().__init__(in_channels, guide_channels)
        self.clustering = SoftClustering(
            self.guide_channels,
            in_channels,
            embed_dims,
            kernel_size,
            normalize,
            temperature,
            border,
            init_cfg,
        )

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``x`` to the size of ``guide``.

        Args:
            x: Decoder feature (N, C, H, W).
            guide: Encoder feature (N, Cy, Hg, Wg), at least as large.

        Returns:
            (N, C, Hg, Wg).

        Raises:
            TypeError: Not floating point tensors.
            ValueError: Shapes that do not fit the module or each other.
        """
        self.check_inputs(x, guide)
        clustering = self.clustering
        query, key = clustering.embed(guide, x)
        return point_affiliation(
            query,
            key,
            x,
            kernel_size=clustering.kernel_size,
            temperature=clustering.temperature,
            border=clustering.border,
        )

    def flops(self, size: tuple[int, int], guide_size: tuple[int, int]) -> int:
        """Count the multiply-adds of one image: projections, similarities and assembly.

        Args:
            size: (H, W) of x.
            guide_size: (Hg, Wg) of the guide.

        Returns:
            Multiply-adds, each counted once.
        """
        d, window = self.clustering.embed_dims, self.clustering.kernel_size**2
        key = size[0] * size[1] * self.in_channels * d
        pixel = self.guide_channels * d + window * (d + self.in_channels)
        return key + guide_size[0] * guide_size[1] * pixel
