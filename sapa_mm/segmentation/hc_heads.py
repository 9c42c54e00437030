"""Decode heads of mmsegmentation whose logits are decoded by the backbone's soft clustering."""

from mmseg.models.decode_heads import (
    ASPPHead,
    DepthwiseSeparableASPPHead,
    FCNHead,
    PSPHead,
    UPerHead,
)
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS

from .clustered_features import ClusterDecoding


@MODELS.register_module()
class HCFCNHead(ClusterDecoding, FCNHead):
    """``FCNHead`` with decoded logits.

    It takes the arguments of ``FCNHead``, and those of `ClusterDecoding`.
    """


@MODELS.register_module()
class HCPSPHead(ClusterDecoding, PSPHead):
    """``PSPHead``, PSPNet's, with decoded logits.

    It takes the arguments of ``PSPHead``, and those of `ClusterDecoding`.
    """


@MODELS.register_module()
class HCASPPHead(ClusterDecoding, ASPPHead):
    """``ASPPHead``, DeepLabv3's, with decoded logits.

    It takes the arguments of ``ASPPHead``, and those of `ClusterDecoding`.
    """


@MODELS.register_module()
class HCDepthwiseSeparableASPPHead(ClusterDecoding, DepthwiseSeparableASPPHead):
    """``DepthwiseSeparableASPPHead``, DeepLabv3+'s, with decoded logits.

    It takes the arguments of ``DepthwiseSeparableASPPHead``, and those of `ClusterDecoding`. With
    ``c1_in_channels`` the head fuses the finest feature, on whose grid there are clusters behind a
    backbone of 4 levels alone; with ``c1_in_channels=0`` its logits are on the coarsest grid.
    """


@MODELS.register_module()
class HCUPerHead(ClusterDecoding, UPerHead):
    """``UPerHead``, UPerNet's, with decoded logits.

    It takes the arguments of ``UPerHead``, and those of `ClusterDecoding`. Its logits are on the
    grid of the first feature in ``in_index``, which must be one of clusters.
    """


@MODELS.register_module()
def HCHead(head_type: str, **kwargs: object) -> BaseDecodeHead:
    """Build the head with decoded logits that stands in for a decode head of mmseg.

    The two are the same::

        decode_head=dict(type='HCHead', head_type='PSPHead', ...)
        decode_head=dict(type='HCPSPHead', ...)

    Args:
        head_type: ``type`` of the decode head, of which there is a class ``HC`` + ``head_type``
            with `ClusterDecoding`, here or registered by the user.
        **kwargs: The head's arguments, and ``hard``, see `ClusterDecoding`.

    Returns:
        The head.

    Raises:
        TypeError: ``head_type`` is no decode head.
        ValueError: ``head_type`` is unknown, or has no class with `ClusterDecoding`.
    """
    if not isinstance(head_type, str):
        raise TypeError(f'head_type: expected the name of a decode head, got {head_type!r}')
    scope, dot, name = head_type.rpartition('.')
    decoding = MODELS.get(f'{scope}{dot}HC{name}')
    if _decodes(decoding):
        return decoding(**kwargs)
    head = MODELS.get(head_type)
    if head is None:
        raise ValueError(f'head_type: expected a decode head of mmseg, got {head_type!r}')
    if not (isinstance(head, type) and issubclass(head, BaseDecodeHead)):
        raise TypeError(f'head_type: expected a decode head of mmseg, got {head_type!r}, {head}')
    known = [key.removeprefix('HC') for key, cls in MODELS.module_dict.items() if _decodes(cls)]
    raise ValueError(
        f'head_type: expected {", ".join(known)}, or a head that has a class such as\n'
        '    @MODELS.register_module()\n'
        f'    class HC{name}(ClusterDecoding, {name}): ...\n'
        f'(MODELS of mmseg.registry, ClusterDecoding of sapa_mm.segmentation), got {head_type!r}'
    )


def _decodes(found: object) -> bool:
    """Whether it is a class with `ClusterDecoding`."""
    return isinstance(found, type) and issubclass(found, ClusterDecoding)
