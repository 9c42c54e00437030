"""Refuses checkpoints that leave the upsamplers of a model without weights, or have others'."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..upsamplers.base import SelfInitialized
from ..upsamplers.inspection import iter_upsamplers
from .errors import ToolError

# So many keys are named at most.
NAMED = 12


def named_keys(keys: Sequence[str]) -> str:
    """Name keys of a state dict, and say how many more there are."""
    more = f' and {len(keys) - NAMED} more' if len(keys) > NAMED else ''
    return ', '.join(keys[:NAMED]) + more


def below(path: str, name: str) -> str:
    """Return what the keys of the part ``name`` of the module at ``path`` begin with."""
    return '.'.join([*filter(None, [path, name]), ''])


def check_loaded(
    model: nn.Module,
    missing: Sequence[str],
    unexpected: Sequence[str],
    errors: Sequence[str],
    checkpoint: str,
    config: str,
) -> None:
    """Check what was left over when a checkpoint was loaded.

    Upsamplers are those in the ``upsamplers`` of hosts, and the clusterings of a backbone.

    Args:
        model: The model.
        missing: Its keys that the checkpoint does not have.
        unexpected: Keys of the checkpoint that it does not have.
        errors: What torch says of weights whose sizes differ.
        checkpoint: Name of the checkpoint.
        config: Name of the model's config.

    Raises:
        ToolError: Weights of an upsampler are missing or of another size; or the checkpoint has
            some, in a host with upsamplers, that the host has no place for.
    """
    found = list(iter_upsamplers(model))
    own = [below(path, f'upsamplers.{step}') for path, step, _ in found]
    own += [
        below(path, '')
        for path, module in model.named_modules()
        if path and isinstance(module, SelfInitialized)
    ]
    first = f'train first: sapa-mm train {config} --cfg-options load_from={checkpoint}'
    # mmengine counts the batches that a norm has seen as no weight.
    weights = [key for key in missing if not key.endswith('num_batches_tracked')]
    lacking = [key for key in weights if key.startswith(tuple(own))]
    if lacking:
        raise ToolError(
            f'{checkpoint} has no weights for upsamplers of {config}, which would be random: '
            f'{named_keys(lacking)}; take a checkpoint that was trained with this config, or '
            f'{first}'
        )
    places = tuple(
        below(path, part)
        for path in {path for path, _, _ in found}
        for part in ('upsamplers', 'upsample_modules')  # the second is FPN_CARAFE's
    )
    others = [key for key in unexpected if key.startswith(places)]
    sizes = tuple(f'size mismatch for {prefix}' for prefix in own)
    others += [' '.join(error.split()) for error in errors if error.startswith(sizes)]
    if others:
        raise ToolError(
            f'{checkpoint} has weights of other upsamplers than {config}: {named_keys(others)}; '
            'take the config that it was trained with (sapa-mm swap makes one of a config of '
            f'FPN_CARAFE), or {first}'
        )


@contextlib.contextmanager
def upsamplers_loaded(model: nn.Module, checkpoint: str | Path, config: str) -> Iterator[None]:
    """Check the checkpoints that are loaded into a model in the block.

    It looks at what loading leaves over, so that a key counts by the name that it is loaded under.

    Args:
        model: The model, without wrappers.
        checkpoint: Name of the checkpoint.
        config: Name of the model's config.

    Raises:
        ToolError: See `check_loaded`.
    """
    errors: list[list[str]] = []

    def keep_errors(*args: Any) -> None:
        errors[:] = args[-1:]  # the list that loading fills

    def check(module: nn.Module, keys: Any) -> None:
        left = keys.missing_keys, keys.unexpected_keys, errors[0]
        check_loaded(module, *left, str(checkpoint), config)

    # The public method came with torch 2.5.
    before = model._register_load_state_dict_pre_hook(keep_errors)
    after = model.register_load_state_dict_post_hook(check)
    try:
        yield
    finally:
        before.remove()
        after.remove()


@contextlib.contextmanager
def upsamplers_loaded_by_runners() -> Iterator[None]:
    """Check the checkpoints that any of mmengine's runners loads in the block.

    Raises:
        ToolError: See `check_loaded`.
    """
    from mmengine.model import BaseTTAModel, is_model_wrapper
    from mmengine.runner import Runner

    load = Runner.load_checkpoint

    @functools.wraps(load)
    def load_checked(self: Runner, filename: str, *args: Any, **kwargs: Any) -> Any:
        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        with upsamplers_loaded(model, filename, self.cfg.filename or 'CONFIG'):
            return load(self, filename, *args, **kwargs)

    Runner.load_checkpoint = load_checked
    try:
        yield
    finally:
        Runner.load_checkpoint = load
