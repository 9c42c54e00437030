"""One way to say that a framework is missing, and what to do."""

import contextlib
from collections.abc import Iterator

#: What pip has to install for a package, by the name that is imported.
INSTALL = {
    'mmengine': 'mmengine==0.10.7',
    'mmcv': '"mmcv>=2.0,<2.2"',
    # mmsegmentation imports the last two without requiring them.
    'mmseg': 'mmsegmentation==1.2.2 ftfy regex',
    'mmdet': 'mmdet==3.3.0',
}


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
