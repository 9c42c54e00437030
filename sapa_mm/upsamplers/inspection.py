"""The upsamplers of a model: where they are and what they are."""

from collections.abc import Iterator

from torch import nn

from .build import SingleInputUpsampler

# The attributes that hold the variant of an upsampler, of which each has one at most.
VARIANTS = ('similarity', 'variant', 'mode')


def iter_upsamplers(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield the upsamplers of a model, which are in the ``upsamplers`` of its hosts.

    Args:
        model: A segmentor, a detector, or a part of one.

    Yields:
        Path of the host in the model (``'decode_head'``; empty if it is the model itself), name of
        the step (``'c4_c3'``), and the upsampler, in the order of the model.
    """
    for path, host in model.named_modules():
        upsamplers = getattr(host, 'upsamplers', None)
        if isinstance(upsamplers, nn.ModuleDict):
            for step, upsampler in upsamplers.items():
                yield path, step, upsampler


def find_upsamplers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the upsamplers of a model, in the ``upsamplers`` of its hosts.

    Args:
        model: A segmentor, a detector, or a part of one.

    Returns:
        Name of a step to its upsampler. Where several hosts have a step of one name, the host comes
        first, as in ``'neck.c4_c3'``. Empty if no host upsamples.
    """
    found = list(iter_upsamplers(model))
    steps = [step for _, step, _ in found]
    return {
        step if steps.count(step) == 1 else f'{path}.{step}'.lstrip('.'): upsampler
        for path, step, upsampler in found
    }


def describe_upsampler(upsampler: nn.Module) -> str:
    """Describe an upsampler by its type and, if it has one, its variant.

    Args:
        upsampler: Any module ``forward(x, guide)``.

    Returns:
        ``'SAPA (gated)'``, ``'IndexNet (m2o)'``, ``'A2U (dynamic)'``, ``'CARAFE'``; of mmcv's
        layers ``'nearest'``, ``'bilinear'``, or the name of the layer's class.
    """
    if isinstance(upsampler, SingleInputUpsampler):
        layer = upsampler.layer
        return layer.mode if isinstance(layer, nn.Upsample) else type(layer).__name__
    kind = type(upsampler).__name__
    options = (getattr(upsampler, name, None) for name in VARIANTS)
    variant = next((option for option in options if isinstance(option, str)), None)
    return kind if variant is None else f'{kind} ({variant})'
