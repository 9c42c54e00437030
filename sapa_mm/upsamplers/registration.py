"""Registers the upsamplers with mmengine where it is installed, and does without it elsewhere.

No other module of this folder asks whether it is there. With mmengine the three names are its own.
"""

import contextlib
from collections.abc import Callable, Iterator

from torch import nn

from ..frameworks import INSTALL, MissingFrameworkError

__all__ = ['MODELS', 'BaseModule', 'ModuleDict']


class PlainModule(nn.Module):
    """Stands in for mmengine's ``BaseModule``.

    Args:
        init_cfg: None, as only mmengine could read another one.

    Raises:
        ValueError: Another ``init_cfg``.
    """

    init_cfg = None
    #: `init_weights` initializes anew whenever it is called.
    is_init = False

    def __init__(self, init_cfg: None = None):
        if init_cfg is not None:
            raise ValueError(
                f'init_cfg: expected None, as mmengine is not installed, got {init_cfg!r}: '
                f'initialize by torch.nn.init, or pip install {INSTALL["mmengine"]}'
            )
        super().__init__()

    def init_weights(self) -> None:
        """Pass the call on to the modules inside that have such a method."""
        for child in self.children():
            init_weights = getattr(child, 'init_weights', None)
            if callable(init_weights):
                init_weights()


class PlainModuleDict(PlainModule, nn.ModuleDict):
    """Stands in for mmengine's ``ModuleDict``."""


class PlainRegistry:
    """Stands in for mmengine's ``MODELS``: what is registered here is found by its name."""

    parent = None

    def __init__(self):
        self.module_dict: dict[str, type] = {}

    def register_module(self) -> Callable[[type], type]:
        """Return the decorator that registers a class."""

        def register(kind: type) -> type:
            self.module_dict[kind.__name__] = kind
            return kind

        return register

    def get(self, name: str) -> type | None:
        """Return the class of that name, if there is one."""
        return self.module_dict.get(name)

    def build(self, cfg: dict) -> nn.Module:
        """Build ``cfg['type']``, a class or the name of one, with the other items as arguments."""
        options = dict(cfg)
        kind = options.pop('type')
        return (self.module_dict[kind] if isinstance(kind, str) else kind)(**options)

    @contextlib.contextmanager
    def switch_scope_and_registry(self, scope: None) -> Iterator['PlainRegistry']:
        """Give this registry, as there is no other one."""
        yield self


try:
    import mmengine  # noqa: F401
    from mmengine.model import BaseModule, ModuleDict
    from mmengine.registry import MODELS
except Exception as error:  # a broken installation may raise anything
    if not isinstance(error, ModuleNotFoundError) or error.name != 'mmengine':
        raise MissingFrameworkError(
            f'mmengine is installed, but cannot be imported ({type(error).__name__}: {error}): pip '
            f'install --force-reinstall {INSTALL["mmengine"]}, or uninstall it to use '
            'sapa_mm.upsamplers with torch alone'
        ) from error
    BaseModule, ModuleDict, MODELS = PlainModule, PlainModuleDict, PlainRegistry()
