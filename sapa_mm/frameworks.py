"""One way to say that a framework is missing, and what to do."""

import contextlib
from collections.abc import Iterator
from importlib import metadata

#: What pip has to install for a package, by the name that is imported, in each of the two lines of
#: OpenMMLab's packages: their own releases, and the fork 'onedl' that is maintained. Both install
#: the same modules, so that an environment must hold one of them only.
LINES = {
    'upstream': {
        'mmengine': 'mmengine==0.10.7',
        'mmcv': '"mmcv>=2.0,<2.2"',
        # It is mmcv without its operators, which the upsamplers do not need.
        'mmcv-lite': '"mmcv-lite>=2.0,<2.2"',
        # mmsegmentation imports the last two without requiring them.
        'mmseg': 'mmsegmentation==1.2.2 ftfy regex',
        'mmdet': 'mmdet==3.3.0',
    },
    'onedl': {
        'mmengine': '"onedl-mmengine>=0.10.12"',
        'mmcv': '"onedl-mmcv>=2.3.6"',
        'mmcv-lite': '"onedl-mmcv>=2.3.6"',
        'mmseg': '"onedl-mmsegmentation>=1.4.2"',
        'mmdet': '"onedl-mmdetection>=3.5.1"',
    },
}

#: The distributions of each line, by which it is told.
DISTRIBUTIONS = {
    'upstream': ('mmengine', 'mmengine-lite', 'mmcv', 'mmcv-lite', 'mmsegmentation', 'mmdet'),
    'onedl': ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'onedl-mmdetection'),
}


def is_distribution(name: str) -> bool:
    """Tell whether a distribution is installed, by the name that pip knows."""
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def installed_lines() -> list[str]:
    """Name the `LINES` of which something is installed; more than one overwrite each other."""
    return [line for line, names in DISTRIBUTIONS.items() if any(map(is_distribution, names))]


#: What pip has to install, in the line that this environment holds; in 'onedl' if it holds none,
#: as that installs without a compiler.
INSTALL = LINES[(installed_lines() or ['onedl'])[0]]


class MissingFrameworkError(ImportError):
    """A framework that is not installed, or whose own import fails."""


@contextlib.contextmanager
def require(package: str, needed_by: str, install: str) -> Iterator[None]:
    """Turn a failed import of a framework into an ImportError that says what to install.

    Args:
        package: What has to be imported.
        needed_by: What asks for it.
        install: What pip has to install.

    Raises:
        MissingFrameworkError: An import inside the context failed.
    """
    try:
        yield
    except (ImportError, AssertionError) as error:
        if isinstance(error, AssertionError) and 'MMCV' not in str(error):
            raise  # mmseg and mmdet assert mmcv's version; anything else is another matter
        raise MissingFrameworkError(
            f'{needed_by} needs {package}, which cannot be imported ({error}): '
            f'pip install {install}'
        ) from error
