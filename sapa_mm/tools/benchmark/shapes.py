"""The sizes at which upsampling is compared."""

from dataclasses import dataclass

import torch

from .stopwatch import cache_bytes

# Without a choice a GPU takes all but the last two, of which a CPU takes the last.
PRESETS = ('fpn', 'segformer', 'dysample', 'large', 'gpu', 'small')


@dataclass(frozen=True)
class Shape:
    """A `Shape` holds the sizes of one upsampling step.

    Attributes:
        name: What the results call it.
        batch: N.
        height: H of the value.
        width: W of the value.
        channels: C of the value.
        embed: D of query and key.
        ratio: Output pixels per cell and axis.
        kernel_size: K.
        steps: Names of the steps of a network that have these sizes. Default: none.
    """

    name: str
    batch: int
    height: int
    width: int
    channels: int = 256
    embed: int = 32
    ratio: int = 2
    kernel_size: int = 5
    steps: tuple[str, ...] = ()

    def sizes(self) -> dict[str, tuple[int, int, int, int]]:
        """Return the shape of every tensor that some candidate takes.

        Returns:
            (N, channels, rows, columns) by the tensor's name; ``'out'`` is the result's.
        """
        n, c, d = self.batch, self.channels, self.embed
        low = self.height, self.width
        high = self.height * self.ratio, self.width * self.ratio
        return {
            'query': (n, d, *high),
            'key': (n, d, *low),
            'value': (n, c, *low),
            'guide': (n, c, *high),
            'weights': (n, self.kernel_size**2, *high),
            'out': (n, c, *high),
        }

    def __str__(self) -> str:
        sizes = self.sizes()
        tensors = ', '.join(f'{name} {sizes[name]}' for name in ('query', 'key', 'value'))
        steps = f' ({", ".join(self.steps)})' if self.steps else ''
        return f'{self.name}{steps}: {tensors}, K {self.kernel_size}'


def preset(name: str, device: torch.device) -> list[Shape]:
    """Return the shapes of a preset.

    Args:
        name: ``'fpn'``: the four levels of a detector's FPN at 800 x 1216, two images, as one GPU
            gets them in mmdetection's configs. ``'segformer'``: the six steps of SegFormer's head
            at 512 x 512, which have three sizes. ``'dysample'``: the size of Figure 1 of DySample
            (Liu et al., ICCV 2023). ``'large'``: a float16 output of at least four times the last
            cache. ``'gpu'``: four sizes whose figures are kept from version to version, on any
            GPU: that of ``'dysample'``, the finest level of ``'fpn'``, the finest step of
            ``'segformer'``, and one far beyond every cache. ``'small'``: a size for a CPU.
        device: The device whose cache ``'large'`` exceeds.
    """
    if name == 'fpn':
        sizes = [(200, 304), (100, 152), (50, 76), (25, 38)]
        return [Shape(f'fpn {h}x{w}', 2, h, w) for h, w in sizes]
    if name == 'segformer':
        steps = {16: ('c4_c3',), 32: ('c4_c2', 'c3_c2'), 64: ('c4_c1', 'c3_c1', 'c2_c1')}
        return [Shape(f'segformer {n}x{n}', 16, n, n, steps=steps[n]) for n in steps]
    if name == 'dysample':
        return [Shape('dysample 120x120', 1, 120, 120)]
    if name == 'large':
        image_bytes = 256 * 512 * 512 * 2
        return [Shape('large 256x256', -(-4 * cache_bytes(device) // image_bytes), 256, 256)]
    if name == 'gpu':
        return [
            Shape('dysample', 1, 120, 120),
            Shape('fpn', 2, 200, 304),
            Shape('sf64', 16, 64, 64),
            Shape('large', 8, 256, 256),
        ]
    return [Shape('small 64x64', 2, 64, 64)]
