"""The features of a backbone that clusters, and what decodes a head's logits by them."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from ..ops.checks import check_bool, check_int
from ..upsamplers.soft_clustering import Assignment


def check_levels(levels: object) -> None:
    """Raise TypeError or ValueError unless ``levels`` is a number of clustering stages."""
    check_int('levels', levels, low=0, high=4)


class ClusteredFeatures(tuple):
    """A backbone's features, with the assignments that it computed on its way down.

    It is the tuple of features that every neck and head of mmseg takes, so whoever does not know of
    the assignments does without: a stock head, an auxiliary head, ``extract_feat`` of a stock
    segmentor. Whoever does know decodes by them. A segmentor that carries the assignments past the
    heads would have needed a copy of ``loss``, ``predict`` and ``_forward`` for every kind of
    segmentor, and a dict of features a change in every head; the only place where this one is lost
    is a neck, which makes new features and is the one to use the assignments (`HCFPN`).

    Attributes:
        assignments: They go fine to coarse: the points of each are the clusters of the one before.
    """

    assignments: tuple[Assignment, ...]

    def __new__(
        cls, features: Iterable[Tensor], assignments: Iterable[Assignment] = ()
    ) -> 'ClusteredFeatures':
        """Make the tuple.

        Args:
            features: (N, C_i, H_i, W_i), fine to coarse.
            assignments: Their assignments, fine to coarse. Default: none.
        """
        self = super().__new__(cls, features)
        self.assignments = tuple(assignments)
        return self

    def decode(self, value: Tensor, *, hard: bool = False) -> Tensor:
        """Bring a map to the finest grid there is an assignment for, level by level.

        Args:
            value: (N, C, H, W) over the clusters of any assignment; without assignments any map.
            hard: Take the value of every point's likeliest cluster alone.

        Returns:
            (N, C, Hg, Wg), or without assignments ``value``.

        Raises:
            ValueError: A grid that no assignment has.
        """
        if not self.assignments:
            return value
        sizes = [assignment.size for assignment in self.assignments]
        size = tuple(value.shape[2:])
        if size not in sizes:
            raise ValueError(
                f'value: expected a map over the clusters of one of the levels, {sizes}, got {size}'
            )
        for assignment in self.assignments[sizes.index(size) :: -1]:
            value = assignment.decode(value, hard=hard)
        return value

    def between(self, low: tuple[int, int], high: tuple[int, int]) -> Assignment | None:
        """Find the assignment of the points of grid ``high`` to the clusters of grid ``low``.

        Returns:
            The assignment, or None if there is none.
        """
        for assignment in self.assignments:
            if assignment.size == low and tuple(assignment.weights.shape[2:]) == high:
                return assignment
        return None


def check_clustered(inputs: object) -> None:
    """Raise TypeError unless ``inputs`` are features with assignments."""
    if not isinstance(inputs, ClusteredFeatures):
        raise TypeError(
            'inputs: expected the features of a backbone that clusters, such as HCResNet, '
            f'straight from it, got {type(inputs).__name__}'
        )


class ClusterDecoding:
    """Mix-in for a decode head: its logits are decoded by the backbone's assignments.

    The losses and the prediction then start from the decoded logits. Parameters, their keys and the
    losses are the head's, which stands behind the mix-in::

        @MODELS.register_module()
        class HCDNLHead(ClusterDecoding, DNLHead): ...

    It may be any head whose ``forward`` gives the logits alone, on a grid of clusters, which is
    that of the backbone's last feature with FCNHead, PSPHead, ASPPHead and their like. A head that
    fuses finer features needs a level for its grid, and leaves the coarser levels without a
    gradient, which several GPUs have to be told by ``find_unused_parameters=True``.

    Args:
        *args: The head's.
        hard: Whether, when not training, each point takes its likeliest cluster's logits.
        **kwargs: The head's.
    """

    def __init__(self, *args: object, hard: bool = False, **kwargs: object):
        check_bool('hard', hard)
        super().__init__(*args, **kwargs)
        self.hard = hard

    def forward(self, inputs: Sequence[Tensor], *args: object) -> Tensor:
        """Compute the logits and decode them.

        Args:
            inputs: What `HCResNet` gives.
            *args: What else the head takes, such as the output of the one before it.

        Returns:
            (N, num_classes, H, W) of the finest grid that has an assignment.

        Raises:
            TypeError: Features without assignments, or a head that gives more than logits.
            ValueError: A head whose logits are on no grid of clusters.
        """
        check_clustered(inputs)
        logits = super().forward(inputs, *args)
        head = type(self).__name__.removeprefix('HC')
        if not isinstance(logits, Tensor):
            raise TypeError(
                'head_type: expected a decode head whose forward gives the logits alone, got '
                f'{head}, {type(logits).__name__}'
            )
        grids = [assignment.size for assignment in inputs.assignments]
        if grids and tuple(logits.shape[2:]) not in grids:
            raise ValueError(
                'head_type: expected a decode head whose logits are on a grid of clusters, '
                f'{grids}, as those of FCNHead, PSPHead and ASPPHead are, got {head}, '
                f'{tuple(logits.shape[2:])}'
            )
        return inputs.decode(logits, hard=self.hard and not self.training)
