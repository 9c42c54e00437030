"""Build upsamplers from configs, layers that see one feature alone included."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from ..frameworks import INSTALL, require
from ..ops.checks import check_choice, check_positive_int
from .base import PairedUpsampler, Upsampler, fit_to_size
from .registration import MODELS, ModuleDict

INTERPOLATIONS = ('nearest', 'bilinear')
SINGLE_INPUT = (*INTERPOLATIONS, 'deconv', 'pixel_shuffle')
#: How the encoders downsample that leave a choice.
DOWNSAMPLES = ('conv', 'max_pool', 'paired')


class SingleInputUpsampler(Upsampler):
    """Give an interpolation or a layer of mmcv the signature ``forward(x, guide)``.

    The layer sees x alone; the guide only says how large the result must be. Interpolation goes
    straight to that size. A deconvolution or pixel shuffle upsamples by its ratio; what overshoots
    by less than the ratio is cropped at the bottom and right, any other difference is interpolated
    bilinearly.

    Args:
        cfg: What mmcv's ``build_upsample_layer`` takes, with ``type`` ``'nearest'``,
            ``'bilinear'``, ``'deconv'`` or ``'pixel_shuffle'``, of which the last two are built by
            mmcv and the others are `torch.nn.Upsample`. Channels are filled in. Default
            ratio (``scale_factor``, or the deconvolution's ``stride``): 2; default kernels: of the
            deconvolution that of bilinear interpolation's size, of the pixel shuffle 3.
        in_channels: Channels C of x.
        guide_channels: Channels Cy of the guide. Default: ``in_channels``.

    Raises:
        ImportError: mmcv is not installed, for ``'deconv'`` and ``'pixel_shuffle'``.
        TypeError: Channels, stride or kernel size that are no ints.
        ValueError: One of them not positive, both ``stride`` and ``scale_factor``, or another
            number of output channels.
    """

    def __init__(self, cfg: dict, in_channels: int, guide_channels: int | None = None):
        super().__init__(in_channels, guide_channels)
        kind = cfg['type']
        if kind == 'nearest' and cfg.get('align_corners') is not None:
            raise ValueError(
                "align_corners: expected it with 'bilinear' alone, got "
                f"{cfg['align_corners']!r} with 'nearest'"
            )
        if kind in INTERPOLATIONS:
            options = {key: value for key, value in cfg.items() if key != 'type'}
            self.layer = nn.Upsample(**{**options, 'mode': kind})
            return
        with require('mmcv', f'upsampler type {kind!r}', INSTALL['mmcv-lite']):
            from mmcv.cnn import build_upsample_layer
        cfg = dict(cfg)
        cfg.setdefault('in_channels', in_channels)
        if cfg.setdefault('out_channels', in_channels) != in_channels:
            raise ValueError(
                f'out_channels: expected {in_channels} like in_channels, got {cfg["out_channels"]}'
            )
        if kind == 'deconv':
            if 'stride' in cfg and 'scale_factor' in cfg:
                raise ValueError('scale_factor: expected it or stride, got both')
            self.ratio = cfg.setdefault('stride', cfg.pop('scale_factor', 2))
            check_positive_int('stride', self.ratio)
            kernel_size = cfg.setdefault('kernel_size', 2 * self.ratio - self.ratio % 2)
            check_positive_int('kernel_size', kernel_size)
            if 'padding' not in cfg:
                # The result is then the ratio times as large. (It cannot be with ratio 1 and an
                # even kernel, which give a row and a column more.)
                excess = kernel_size - self.ratio
                cfg['padding'] = max(excess + (self.ratio > 1), 0) // 2
                missing = 2 * cfg['padding'] - excess if self.ratio > 1 else 0
                cfg.setdefault('output_padding', missing)
        else:
            cfg.setdefault('upsample_kernel', 3)
            self.ratio = cfg.setdefault('scale_factor', 2)
            check_positive_int('scale_factor', self.ratio)
        self.layer = build_upsample_layer(cfg)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``x`` to the size of ``guide``.

        Args:
            x: (N, C, H, W).
            guide: (N, Cy, Hg, Wg), at least as large.

        Returns:
            (N, C, Hg, Wg).

        Raises:
            TypeError: Not floating point tensors.
            ValueError: Shapes that do not fit the module or each other.
        """
        self.check_inputs(x, guide)
        size = tuple(guide.shape[2:])
        if isinstance(self.layer, nn.Upsample):
            layer = self.layer
            return F.interpolate(x, size, mode=layer.mode, align_corners=layer.align_corners)
        return fit_to_size(self.layer(x), x, size, self.ratio)


def registered_upsamplers(base: type[Upsampler] = Upsampler) -> list[str]:
    """Name the registered sub-classes of ``base``.

    Args:
        base: The class that they have in common.

    Returns:
        Those in the registry of the running framework and in mmengine's, SAPA first. Other modules
        ``forward(x, guide)`` may be registered, which cannot be told from the rest.
    """
    names = set()
    with MODELS.switch_scope_and_registry(None) as registry:
        while registry is not None:
            names |= {
                name
                for name, kind in registry.module_dict.items()
                if isinstance(kind, type) and issubclass(kind, base)
            }
            registry = registry.parent
    return sorted(names, key=lambda name: (name != 'SAPA', name))


def check_upsample_cfg(name: str, cfg: object) -> None:
    """Raise TypeError unless ``cfg`` is a dict, ValueError unless its ``type`` is known."""
    if not isinstance(cfg, Mapping):
        raise TypeError(f'{name}: expected a dict with a type, got {cfg!r}')
    kind = cfg.get('type')
    if isinstance(kind, type) or kind in SINGLE_INPUT:
        return
    # The registry of the running framework is asked, which falls back on mmengine's.
    with MODELS.switch_scope_and_registry(None) as registry:
        if isinstance(kind, str) and registry.get(kind) is not None:
            return
    given = 'none' if kind is None else repr(kind)
    names = ', '.join([*registered_upsamplers(), *SINGLE_INPUT])
    raise ValueError(
        f'{name}: expected type {names} or a module registered in MODELS with forward(x, guide), '
        f'got {given}'
    )


def build_upsampler(cfg: dict, in_channels: int, guide_channels: int | None = None) -> nn.Module:
    """Build an upsampler from a config.

    Args:
        cfg: ``dict(type=..., ...)``: one of `registered_upsamplers`, such as ``'SAPA'``; or, with
            mmcv's options, ``'nearest'``, ``'bilinear'``, ``'deconv'`` or ``'pixel_shuffle'``; or
            another module registered in ``MODELS`` that takes ``in_channels`` and
            ``guide_channels`` and has ``forward(x, guide)``.
        in_channels: Channels of the decoder feature.
        guide_channels: Channels of the encoder feature. Default: ``in_channels``.

    Returns:
        A module ``forward(x, guide)`` whose result has the guide's size.

    Raises:
        TypeError: ``cfg`` is no dict, or holds an option that the upsampler does not have.
        ValueError: No ``type``, an unknown one, or a bad option.
    """
    check_upsample_cfg('upsample_cfg', cfg)
    if cfg['type'] in SINGLE_INPUT:
        return SingleInputUpsampler(cfg, in_channels, guide_channels)
    return MODELS.build({'in_channels': in_channels, 'guide_channels': guide_channels, **cfg})


def build_steps(
    upsample_cfg: dict,
    step_cfgs: dict | None,
    steps: dict[str, tuple[int, int]],
    skip: Collection[str] = (),
) -> ModuleDict:
    """Build one upsampler for each step of a host.

    Args:
        upsample_cfg: Config of all steps.
        step_cfgs: Name of a step to the options that differ there; with a ``type`` of its own it
            replaces ``upsample_cfg``. Default: none.
        steps: Name of a step to (in_channels, guide_channels).
        skip: Names of steps that do without an upsampler, whatever the configs say. Default: none.

    Returns:
        Upsamplers by the name of their step.

    Raises:
        TypeError: A config is no dict.
        ValueError: An unknown step, or a config that `build_upsampler` refuses.
    """
    check_upsample_cfg('upsample_cfg', upsample_cfg)
    step_cfgs = {} if step_cfgs is None else step_cfgs
    if not isinstance(step_cfgs, Mapping):
        raise TypeError(f'step_cfgs: expected a dict of dicts, got {step_cfgs!r}')
    for name, cfg in step_cfgs.items():
        if name not in steps:
            raise ValueError(f'step_cfgs: expected steps of {", ".join(steps)}, got {name!r}')
        if not isinstance(cfg, Mapping):
            raise TypeError(f'step_cfgs[{name!r}]: expected a dict, got {cfg!r}')
    upsamplers = ModuleDict()  # torch's own would not pass init_weights on
    for name, channels in steps.items():
        if name in skip:
            continue
        override = step_cfgs.get(name, {})
        cfg = dict(override) if 'type' in override else {**upsample_cfg, **override}
        upsamplers[name] = build_upsampler(cfg, *channels)
    return upsamplers


def downsample_type(cfg: object) -> str:
    """Return how an encoder downsamples, one of `DOWNSAMPLES`.

    Args:
        cfg: ``dict(type=...)``, without options.

    Raises:
        TypeError: No dict.
        ValueError: No such type, or an option.
    """
    if not isinstance(cfg, Mapping):
        raise TypeError(f'downsample_cfg: expected a dict with a type, got {cfg!r}')
    check_choice("downsample_cfg['type']", cfg.get('type'), DOWNSAMPLES)
    if len(cfg) > 1:
        raise ValueError(f'downsample_cfg: expected no option but type, got {cfg!r}')
    return cfg['type']


def check_pairs(upsamplers: ModuleDict) -> None:
    """Check that an encoder can downsample by the upsamplers of its steps.

    Args:
        upsamplers: Upsamplers by the name of their step.

    Raises:
        ValueError: One has no ``encode`` and ``downsample``.
    """
    for name, upsampler in upsamplers.items():
        methods = all(hasattr(upsampler, method) for method in ('encode', 'downsample'))
        # A2U has the methods always, what they need only on request.
        if not methods or not getattr(upsampler, 'paired', True):
            names = ', '.join(registered_upsamplers(PairedUpsampler))
            raise ValueError(
                "downsample_cfg: 'paired' expected an upsampler with encode and downsample "
                f'({names}, with paired=True where it is an option), got {name} {upsampler}'
            )
