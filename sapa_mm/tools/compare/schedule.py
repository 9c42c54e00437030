"""Shortens the schedule of a config, whatever it has that depends on the training's length."""

import itertools
from collections.abc import Callable
from typing import Any

from mmengine.config import Config

from ..configs import type_name
from ..errors import ToolError
from .history import Logging

# Schedulers take 10^9 for no end.
NO_END = 10**9
# These never return to the full value after a single step, so they get two.
TWO_STEPS = ('Linear', 'Constant')
# What hooks of mmengine and mmdetection have that depends on the training's length.
HOOK_POSITIONS = ('begin_iter', 'begin_epoch', 'num_last_epochs', 'save_begin', 'switch_epoch')


def _shrink_scheduler(cfg: dict[str, Any], scaled: Callable[[int], int]) -> None:
    """Shorten a scheduler of parameters; steps of any unit become fewer by the same ratio."""

    def at_least_one(steps: int) -> int:
        return max(1, scaled(steps))

    begin = cfg.get('begin', 0)
    if begin:
        cfg['begin'] = scaled(begin)
    end = cfg.get('end')
    if end is not None and end < NO_END:
        least = 2 if type_name(cfg).startswith(TWO_STEPS) else 1
        cfg['end'] = max(scaled(end), cfg.get('begin', 0) + min(least, end - begin))
    for key in ('T_max', 'step_size', 'total_steps'):
        if cfg.get(key):
            cfg[key] = at_least_one(cfg[key])
    # Both may come several times, or lie close together, without being wrong.
    if 'milestones' in cfg:
        cfg['milestones'] = [at_least_one(milestone) for milestone in cfg['milestones']]
    if 'periods' in cfg:
        ends = itertools.accumulate(cfg['periods'], initial=0)
        cfg['periods'] = [max(1, scaled(b) - scaled(a)) for a, b in itertools.pairwise(ends)]


def _shrink_schedulers(cfg: Any, scaled: Callable[[int], int]) -> None:
    """Shorten one scheduler, a list of them, or those of several optimizers."""
    if isinstance(cfg, list | tuple):
        for item in cfg:
            _shrink_schedulers(item, scaled)
    elif isinstance(cfg, dict):
        if 'type' in cfg:
            _shrink_scheduler(cfg, scaled)
        else:
            _shrink_schedulers(list(cfg.values()), scaled)


def shrink(cfg: Config, length: int) -> None:
    """Shorten a config's training, in place.

    Every position in the schedule, in iterations or epochs, is multiplied by the ratio of the
    lengths and rounded down, but what has to be positive stays so. That holds for warm-up, the
    intervals of validations and checkpoints, and the switches of hooks, too. The last iteration is
    validated, as mmengine's loops do, and saved.

    Args:
        cfg: The config, of a loop that counts epochs or iterations.
        length: How many epochs or iterations it gets.

    Raises:
        ToolError: The config names no length.
    """
    whole = length_of(cfg)

    def scaled(steps: int) -> int:
        return int(steps * length // whole)

    def interval(steps: int) -> int:
        return max(1, scaled(steps)) if steps > 0 else steps

    train = cfg.train_cfg
    train['max_epochs' if Logging.of(cfg).epochs else 'max_iters'] = length
    for key in ('val_interval', 'val_begin'):
        if key in train:
            train[key] = interval(train[key])
    if train.get('dynamic_intervals'):
        train['dynamic_intervals'] = [(scaled(a), interval(b)) for a, b in train.dynamic_intervals]
    _shrink_schedulers(cfg.get('param_scheduler'), scaled)
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    for hook in filter(None, hooks):
        for key in HOOK_POSITIONS:
            if hook.get(key):
                hook[key] = scaled(hook[key])
        if type_name(hook) == 'CheckpointHook':
            hook['interval'] = interval(hook.get('interval', -1))
            hook['save_last'] = True


def length_of(cfg: Config) -> int:
    """Return how many epochs or iterations a config trains.

    Raises:
        ToolError: It does not say so.
    """
    length = Logging.of(cfg).length
    if not length:
        raise ToolError('--budget time: expected max_iters or max_epochs in train_cfg, got neither')
    return length
