"""Print the versions and devices of this environment, and what of sapa_mm works in it.

For a bug report: paste all of it. What does not work comes with what to do about it.
"""

import argparse
import functools
import importlib
import importlib.util
import itertools
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata

import torch

from .. import ops
from ..frameworks import DISTRIBUTIONS, MissingFrameworkError, installed_lines, is_distribution
from ..version import __version__
from .configs import package_folder, reason
from .errors import ToolError
from .launch import find_script
from .new_style import FRAMEWORKS, HOSTS

# Distributions by the name that is imported: a fork's may have another name.
PACKAGES = ('torch', 'triton', 'numpy', 'mmengine', 'mmcv', 'mmseg', 'mmdet')


@functools.cache
def distributions() -> Mapping[str, list[str]]:
    """The distributions that provide a package, by its name."""
    return metadata.packages_distributions()


def version(package: str) -> str:
    """The installed distributions that provide a package, with their versions; or why none does."""
    try:
        names = dict.fromkeys(distributions().get(package, ()))
    except Exception as error:  # whatever broken metadata of some other package raise
        return f'unknown ({reason(error)})'
    found = ', '.join(f'{name} {metadata.version(name)}' for name in names)
    if found:
        return found
    try:
        importlib.import_module(package)
    except Exception as error:  # a module on the path, without metadata, may be anything
        return 'not installed' if isinstance(error, ModuleNotFoundError) else reason(error)
    return 'without a distribution'


def mmcv_operators() -> str:
    """Whether mmcv has its compiled operators, which both frameworks import."""
    try:
        importlib.import_module('mmcv.ops')
    except Exception as error:  # a library built for another torch fails in many ways
        return f'without its operators ({reason(error)})'
    return 'with its operators'


def devices() -> Iterator[str]:
    """What torch runs on, a line each."""
    kind = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no CUDA'
    if torch.version.hip:
        kind = f'HIP {torch.version.hip}'
    yield f'CPU: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads'
    yield f'torch is built with {kind} and sees {torch.cuda.device_count()} GPUs'
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield (
            f'GPU {i}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute '
            f'capability {properties.major}.{properties.minor}'
        )


def backend() -> str:
    """Which backend the operators take by default, and why."""
    why_not = ops.unavailable('triton')
    if not torch.cuda.is_available():
        return f'PyTorch, as for every tensor on a CPU; Triton: {why_not or "available"}'
    return f'PyTorch: {why_not}' if why_not else 'Triton, on GPU tensors'


def upsamplers() -> str:
    """Whether the upsamplers can be used, and where they are registered; or why not."""
    try:
        from ..upsamplers import registration
    except MissingFrameworkError as error:
        return f'no: {error}'
    if isinstance(registration.MODELS, registration.PlainRegistry):
        return 'yes, as PyTorch modules; mmengine, which configs need, is not installed'
    return "yes, registered in mmengine's MODELS"


def usable(framework: str) -> str:
    """Whether models of a framework can be trained and tested with sapa_mm; or why not."""
    if importlib.util.find_spec(framework) is None:
        return f'no: {framework} is not installed: pip install {FRAMEWORKS[framework]}'
    try:
        importlib.import_module(HOSTS[framework])
        for tool in ('train', 'test'):
            find_script(framework, tool)
    except (MissingFrameworkError, ToolError) as error:
        return f'no: {error}'
    return 'yes'


def lines() -> Iterator[str]:
    """The report."""
    yield f'sapa_mm {__version__} in {package_folder("sapa_mm")}'
    yield f'Python {platform.python_version()} on {platform.platform()}'
    for package in PACKAGES:
        found = version(package)
        if package == 'mmcv' and found != 'not installed':
            found += f', {mmcv_operators()}'
        yield f'{package}: {found}'
    if len(installed_lines()) > 1:
        both = ', '.join(filter(is_distribution, itertools.chain(*DISTRIBUTIONS.values())))
        yield (
            f'warning: {both} are of two lines with the same modules and overwrite each other: '
            'install one of them into a new environment'
        )
    yield from devices()
    yield f'operators run on {backend()}'
    yield f'upsamplers: {upsamplers()}'
    for framework in FRAMEWORKS:
        yield f'train and test of {framework}: {usable(framework)}'


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print the report."""
    argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    for line in lines():
        print(line, flush=True)
