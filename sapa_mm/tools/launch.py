"""Runs the train and test scripts that mmsegmentation and mmdetection install with themselves.

The config is found, its ``default_scope`` or the classes of its model tell the framework, and the
framework's own script runs with the user's arguments, in this process, where all of sapa_mm is
registered. Without an accelerator, what distributed runs need is added to them.
"""

import argparse
import contextlib
import datetime
import gc
import importlib.util
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..frameworks import INSTALL
from .configs import (
    find_config,
    package_folder,
    packaged_folders,
    type_name,
)
from .errors import ToolError
from .new_style import FRAMEWORKS, children, framework_of

DDP = 'MMDistributedDataParallel'

# Where mmengine's AmpOptimWrapper, which --amp chooses, agrees to train.
AMP_DEVICES = ('cuda', 'npu', 'mlu', 'musa')

EPILOG = """\
CONFIG and every other argument go to the script of the config's framework, unchanged. To see
its arguments, name a config: %(prog)s CONFIG --help. CONFIG comes first; it is a path or the
name of one that mmseg, mmdet or sapa_mm installs:

%(examples)s

Every module of sapa_mm is registered before the script starts, so that a stock config can
name one by --cfg-options alone.

Several processes: tools/dist_%(tool)s.sh, or torchrun with --launcher pytorch. Without a GPU
they talk by gloo, and SyncBN, which has no CPU kernel, becomes BN wherever the config names
it; what --cfg-options sets is left as it is."""

EXAMPLES = {
    'train': """\
  %(prog)s configs/my_config.py --work-dir work_dirs/mine --resume
  %(prog)s sapa_mm::sapa/segformer_mit-b1_sapa-g_8xb2-160k_ade20k-512x512.py --amp""",
    'test': """\
  %(prog)s configs/my_config.py work_dirs/mine/iter_160000.pth
  %(prog)s mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py CHECKPOINT --out result.pkl""",
}


def find_script(package: str, tool: str) -> Path:
    """Return the path of a framework's own ``tool`` ('train' or 'test').

    Raises:
        ToolError: If the framework is not installed or came without its tools.
    """
    for folder in packaged_folders(package, 'tools'):
        if (folder / f'{tool}.py').is_file():
            return folder / f'{tool}.py'
    raise ToolError(
        f'{package} is installed in {package_folder(package)} without its tools/{tool}.py: '
        f'pip install --force-reinstall --no-deps {FRAMEWORKS[package]}'
    )


def split_arguments(arguments: list[str]) -> tuple[str, list[str]]:
    """Return CONFIG and, in their order, all other arguments.

    ``torch.distributed.launch`` puts ``--local-rank=N`` in front. Nothing else may stand there:
    only the framework knows which options take a value, and CONFIG names the framework.
    """
    first = 0
    while arguments[first:] and arguments[first].startswith(('--local-rank=', '--local_rank=')):
        first += 1
    if not arguments[first:] or arguments[first].startswith('-'):
        got = arguments[first] if arguments[first:] else 'nothing'
        raise ToolError(f'CONFIG: expected as the first argument, got {got}')
    return arguments[first], arguments[:first] + arguments[first + 1 :]


def read_options(arguments: list[str]) -> argparse.Namespace:
    """Return the launcher, whether --amp is among the arguments, and the merged --cfg-options."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--launcher', default='none')
    parser.add_argument('--amp', action='store_true')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    try:
        return parser.parse_known_args(arguments)[0]
    except (AssertionError, ValueError) as error:
        raise ToolError(f'--cfg-options: expected KEY=VALUE pairs; {error}') from error


def sync_bn_keys(node: Any, key: str) -> list[str]:
    """Return the dotted key of every dict of type SyncBN in ``node``, which ``key`` leads to."""
    if isinstance(node, dict) and type_name(node) in ('SyncBN', 'MMSyncBN', 'SyncBatchNorm'):
        return [key]
    return [
        found for name, child in children(node) for found in sync_bn_keys(child, f'{key}.{name}')
    ]


def cpu_options(cfg: dict, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a distributed run without an accelerator needs.

    Args:
        cfg: The config with the user's own options merged.
        given: The user's own options by dotted key; none of them is changed.

    Returns:
        Options by dotted key: the gloo backend, a model wrapper that expects no device but is
        otherwise the one of the config, and BN for SyncBN.

    Raises:
        ToolError: If the user's options put something else where one of these belongs.
    """
    options: dict[str, Any] = {'env_cfg.dist_cfg.backend': 'gloo'}
    wrapper = cfg.get('model_wrapper_cfg')
    if not wrapper:
        # What mmengine itself passes when the config has no wrapper.
        options |= {
            'model_wrapper_cfg.type': DDP,
            'model_wrapper_cfg.broadcast_buffers': False,
            'model_wrapper_cfg.find_unused_parameters': bool(cfg.get('find_unused_parameters')),
        }
    if not wrapper or type_name({'type': DDP, **wrapper}) == DDP:
        options['model_wrapper_cfg.device_ids'] = None
    if cfg.get('sync_bn'):
        options['sync_bn'] = None
    options |= {f'{key}.type': 'BN' for key in sync_bn_keys(cfg.get('model'), 'model')}
    options = {key: value for key, value in options.items() if key not in given}

    for key in list(options):
        for parent in missing_parents(cfg, key):
            if parent in given:
                raise ToolError(
                    f'--cfg-options: {parent}={given[parent]} leaves no room for {key}, which a '
                    'distributed run without a GPU needs; leave it out'
                )
            # Merging into a None that the config spells out needs this mark.
            options[f'{parent}._delete_'] = True
    return options


def missing_parents(cfg: dict, key: str) -> list[str]:
    """Return the dotted keys above ``key`` that hold something other than a dict or list."""
    found, node, names = [], cfg, key.split('.')[:-1]
    for depth, name in enumerate(names, start=1):
        if isinstance(node, list):
            node = node[int(name)]
        elif name in node:
            node = node[name]
        else:
            break
        if not isinstance(node, (dict, list)):
            found.append('.'.join(names[:depth]))
            break
    return found


def without_accelerator() -> bool:
    """Return whether models run on the CPU here."""
    from mmengine.device import get_device

    return get_device() == 'cpu'


def check_cpu_launch(launcher: str) -> None:
    """Check that processes without an accelerator were started by torchrun.

    Raises:
        ToolError: If the launcher is another one or its environment is missing.
    """
    if launcher != 'pytorch':
        raise ToolError(f'--launcher: expected pytorch where there is no GPU, got {launcher}')
    needed = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise ToolError(
            f'--launcher pytorch: {", ".join(missing)} not in the environment; start the processes '
            'by tools/dist_train.sh, tools/dist_test.sh or torchrun'
        )


def check_amp(cfg: dict, amp: bool) -> None:
    """Check that the device can train in mixed precision, if that is wanted.

    Args:
        cfg: The config with the user's own options merged.
        amp: Whether --amp is given.

    Raises:
        ToolError: If --amp or the config asks for mixed precision where mmengine refuses it.
    """
    from mmengine.device import get_device

    device = get_device()
    in_config = type_name(cfg.get('optim_wrapper') or {}) == 'AmpOptimWrapper'
    if device in AMP_DEVICES or not (amp or in_config):
        return
    what, remedy = '--amp', 'leave it out'
    if in_config:
        what = 'CONFIG: optim_wrapper.type=AmpOptimWrapper'
        remedy = 'make it OptimWrapper, without loss_scale and dtype'
    raise ToolError(
        f'{what}: mmengine trains in mixed precision on {", ".join(AMP_DEVICES)} alone, and models '
        f'run on {device} here; to train in float32, {remedy}'
    )


@contextlib.contextmanager
def process_group(settings: dict | None) -> Iterator[None]:
    """Keep torch.distributed running inside the block.

    mmengine leaves a group that runs already alone; its own start insists on a CUDA device.

    Args:
        settings: The config's ``env_cfg.dist_cfg``, of which ``backend`` and ``timeout`` (seconds)
            are used. None: do nothing.
    """
    if settings is None:
        yield
        return

    from torch import distributed

    timeout = settings.get('timeout')
    distributed.init_process_group(
        settings['backend'],
        timeout=None if timeout is None else datetime.timedelta(seconds=timeout),
    )
    try:
        yield
        # The wrapped model keeps the group's threads, and the runner is a reference cycle: what is
        # left of them at the interpreter's exit makes some process abort now and then.
        gc.collect()
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def prepare(tool: str, arguments: list[str]) -> tuple[Path, list[str], dict | None]:
    """Find the framework's script, and add the options that a CPU needs.

    Args:
        tool: 'train' or 'test'.
        arguments: The command line without the program.

    Returns:
        The script, its arguments, and the settings for `process_group`.

    Raises:
        ToolError: If the arguments or the installation do not allow it.
    """
    name, rest = split_arguments(arguments)
    path = find_config(name)
    if importlib.util.find_spec('mmengine') is None:
        raise ToolError(f'mmengine is not installed: pip install {INSTALL["mmengine"]}')
    from mmengine.config import Config

    options = read_options(rest)
    cfg = Config.fromfile(path, import_custom_modules=False)
    cfg.merge_from_dict(options.cfg_options)
    scope = framework_of(cfg)
    if scope not in FRAMEWORKS:
        raise ToolError(
            f'CONFIG: expected default_scope {" or ".join(map(repr, FRAMEWORKS))} in {path}, or a '
            f'model of their classes, got {scope!r}; --cfg-options default_scope=mmseg can give it'
        )
    if tool == 'train':
        check_amp(cfg, options.amp)
    script = find_script(scope, tool)

    if options.launcher == 'none' or not without_accelerator():
        return script, [str(path), *rest], None
    check_cpu_launch(options.launcher)
    added = cpu_options(cfg.to_dict(), options.cfg_options)
    cfg.merge_from_dict(added)
    replaced = [key for key, value in added.items() if value == 'BN' or key == 'sync_bn']
    if replaced and os.environ['RANK'] == '0':
        print(f'SyncBN has no CPU kernel: BN is used for {", ".join(replaced)}', flush=True)
    rest = [*rest, '--cfg-options', *(f'{key}={value}' for key, value in added.items())]
    return script, [str(path), *rest], cfg.env_cfg.dist_cfg


def show_help(tool: str, prog: str) -> None:
    """Print what ``tool`` ('train' or 'test') does and takes."""
    names = {'prog': prog, 'tool': tool}
    positionals = 'CONFIG CHECKPOINT' if tool == 'test' else 'CONFIG'
    argparse.ArgumentParser(
        prog=prog,
        usage=f"%(prog)s {positionals} [arguments of the framework's own {tool}.py]",
        description=f'Run the {tool}.py of mmsegmentation or mmdetection with sapa_mm registered.',
        epilog=EPILOG % {**names, 'examples': EXAMPLES[tool] % names},
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    ).print_help()


def check_of(tool: str) -> contextlib.AbstractContextManager[None]:
    """Return the block in which ``tool`` runs: what is tested must have its upsamplers' weights."""
    if tool == 'train':
        return contextlib.nullcontext()
    from .weights import upsamplers_loaded_by_runners

    return upsamplers_loaded_by_runners()


def main(tool: str, argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the framework's script for ``tool``, 'train' or 'test'.

    Args:
        tool: Which.
        argv: Arguments. Default: those of this process.
        prog: What the user calls it. Default: the script in tools/.

    Raises:
        ToolError: If the arguments or the installation do not allow it, or if the checkpoint to
            test leaves upsamplers without weights.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    prog = prog or f'tools/{tool}.py'
    if arguments in (['-h'], ['--help']):
        show_help(tool, prog)
        return
    script, arguments, settings = prepare(tool, arguments)
    if os.path.isfile(sys.argv[0]):
        # The scripts beside tools/train.py must not shadow modules that the framework imports.
        folder = os.path.realpath(os.path.dirname(sys.argv[0]))
        sys.path[:] = [path for path in sys.path if os.path.realpath(path or '.') != folder]
    sys.argv = [str(script), *arguments]
    with process_group(settings), check_of(tool):
        runpy.run_path(str(script), run_name='__main__')


def train(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train by the framework's train.py; see `main`."""
    main('train', argv, prog)


def test(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Test by the framework's test.py; see `main`."""
    main('test', argv, prog)
