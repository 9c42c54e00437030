"""What the guided hosts declare: the stock part of a model that each of them replaces."""

from typing import ClassVar, NamedTuple


class GuidedType(NamedTuple):
    """The type of a guided host.

    Attributes:
        name: Its ``type`` in a config, in the registry of the part that it replaces.
        refuses: Names of arguments of that part which the host does not take.
        pairs: Whether its encoder downsamples by upsamplers that have ``paired=True``.
    """

    name: str
    refuses: tuple[str, ...]
    pairs: bool = False


_GUIDED: dict[str, GuidedType] = {}


class GuidedHost:
    """Mix-in for a host that upsamples with guidance where a part of mmseg or mmdet does without.

    A class that sets `replaces` is listed by `guided_hosts`. Its sub-classes are not, unless they
    set it themselves.

    Args:
        *args: Arguments of what follows the mix-in.
        **kwargs: Arguments of what follows the mix-in.

    Raises:
        TypeError: When a class is defined: another one replaces the same part.
        ValueError: An argument that the host refuses.
    """

    #: ``type`` of the part that the host replaces.
    replaces: ClassVar[str]
    #: Arguments of that part for which the host has no use, as it has ``upsample_cfg``.
    refuses: ClassVar[tuple[str, ...]] = ()
    #: Whether its encoder downsamples by upsamplers that have ``paired=True``.
    pairs: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: object):
        super().__init_subclass__(**kwargs)
        if 'replaces' not in cls.__dict__:
            return
        # mmseg and mmdet have an FPN each, which one entry stands for.
        declared = GuidedType(cls.__name__, cls.refuses, cls.pairs)
        if _GUIDED.setdefault(cls.replaces, declared) != declared:
            raise TypeError(
                f'replaces: expected no other host in place of {cls.replaces} than '
                f'{_GUIDED[cls.replaces]}, got {declared}'
            )

    def __init__(self, *args: object, **kwargs: object):
        for name in self.refuses:
            if name in kwargs:
                raise ValueError(
                    f'{name}: expected upsample_cfg=dict(type=...) in its place, got '
                    f'{kwargs[name]!r}'
                )
        super().__init__(*args, **kwargs)


def guided_hosts() -> dict[str, GuidedType]:
    """List the guided hosts of the frameworks that are installed.

    Importing ``sapa_mm`` is enough, which imports ``sapa_mm.segmentation`` and
    ``sapa_mm.detection`` where it can. No framework is imported here.

    Returns:
        ``type`` of the part that a host replaces, to the host: ``'SegformerHead'`` to
        ``GuidedType('GuidedSegformerHead', ('interpolate_mode',))``.
    """
    return dict(_GUIDED)
