"""Files of image matting: images, alphas and trimaps, each refused by its name if it is bad."""

import os
from pathlib import Path

import cv2
import numpy as np

#: What a trimap holds where alpha is not known; 0 is background and 255 is foreground.
UNKNOWN = 128
# What other programs write there: 127, 128, or other greys in the middle.
_LEAST_UNKNOWN, _LARGEST_UNKNOWN = 85, 170

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff')


def _decode(path: str | os.PathLike[str], flags: int) -> np.ndarray:
    """Read a file with 8 bits a channel by OpenCV."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected the file of an image, got no '{path}'")
    data = np.fromfile(path, np.uint8)
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error:
        image = None
    if image is None:
        raise ValueError(f"expected an image that OpenCV reads, got other content in '{path}'")
    if image.dtype != np.uint8:
        raise ValueError(
            f"expected an image of 8 bits a channel, got {image.dtype} in '{path}'; convert it to "
            '8 bits'
        )
    return image


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image in colour.

    A grey image gets three equal channels, a fourth channel is left out, and the orientation that
    a camera noted is applied.

    Args:
        path: The file.

    Returns:
        (H, W, 3), uint8, BGR.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no image, or one of more than 8 bits a channel.
    """
    return _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)


def read_alpha(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an alpha matte.

    Args:
        path: The file: of one channel, or of three equal ones. A fourth one has to be 255
            everywhere.

    Returns:
        (H, W), uint8: 0 is background and 255 is foreground.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no image, one of more than 8 bits a channel, or one whose channels
            differ.
    """
    image = _decode(path, cv2.IMREAD_UNCHANGED)
    if image.ndim == 2:
        return image
    first = image[..., 0]
    if any((image[..., channel] != first).any() for channel in (1, 2)):
        raise ValueError(
            f"expected one channel or three equal ones, got three that differ in '{path}'; save it "
            'in shades of grey'
        )
    if image.shape[2] == 4 and (image[..., 3] != 255).any():
        raise ValueError(
            f"expected one channel or three equal ones, got a channel of transparency in '{path}'; "
            'save it without, or save that channel alone'
        )
    return np.ascontiguousarray(first)


def read_trimap(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a trimap.

    Args:
        path: The file: of one channel, or of three equal ones.

    Returns:
        (H, W), uint8: 0 is background, 255 is foreground and 128 is unknown.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no image, one of more than 8 bits a channel, one whose channels
            differ, or values that `normalize_trimap` refuses.
    """
    return normalize_trimap(read_alpha(path), str(path))


def normalize_trimap(trimap: np.ndarray, name: str) -> np.ndarray:
    """Give the unknown pixels of a trimap the value 128.

    Args:
        trimap: (H, W), uint8: 0 is background, 255 is foreground, and 85 to 170 are unknown.
        name: What a message calls it: its file.

    Returns:
        (H, W), uint8, of 0, 128 and 255 alone.

    Raises:
        ValueError: Another shape or dtype, or pixels of other values.
    """
    if trimap.ndim != 2 or trimap.dtype != np.uint8:
        raise ValueError(
            f"expected a trimap (H, W) of uint8, got {trimap.shape} of {trimap.dtype} in '{name}'"
        )
    unknown = (trimap >= _LEAST_UNKNOWN) & (trimap <= _LARGEST_UNKNOWN)
    bad = ~unknown & (trimap != 0) & (trimap != 255)
    if bad.any():
        values = np.unique(trimap[bad])
        listed = ', '.join(map(str, values[:5])) + (', ...' if len(values) > 5 else '')
        raise ValueError(
            'expected a trimap of 0 (background), 255 (foreground) and 85 to 170 (unknown), got '
            f"{bad.sum():,} pixels of {listed} in '{name}'; map its values to 0, 128 and 255, and "
            'save it as PNG, as JPEG changes them'
        )
    return np.where(unknown, np.uint8(UNKNOWN), trimap)


def check_unknown(trimap: np.ndarray, name: str) -> None:
    """Raise ValueError unless a trimap has unknown pixels.

    Args:
        trimap: (H, W), of 0, 128 and 255.
        name: What a message calls it: its file.
    """
    if not (trimap == UNKNOWN).any():
        raise ValueError(
            f"expected a trimap with unknown pixels ({UNKNOWN}), got none in '{name}'; mark where "
            'alpha is wanted'
        )


def check_same_size(**named: np.ndarray) -> None:
    """Raise ValueError unless images have one height and width.

    Args:
        **named: (H, W) or (H, W, C), by what a message calls them, which may be any text:
            ``check_same_size(**{"fg 'a.jpg'": image, "alpha 'a.png'": alpha})``.
    """
    sizes = {name: image.shape[:2] for name, image in named.items()}
    if len(set(sizes.values())) > 1:
        listed = ', '.join(f'{h} x {w} of {name}' for name, (h, w) in sizes.items())
        raise ValueError(
            f'expected images of one size (height x width), got {listed}; they have to belong '
            'together, pixel by pixel'
        )


def read_foreground(
    fg_path: str | os.PathLike, alpha_path: str | os.PathLike
) -> tuple[np.ndarray, np.ndarray]:
    """Read a foreground and its alpha.

    Args:
        fg_path: The foreground's file.
        alpha_path: The alpha's file.

    Returns:
        (H, W, 3), uint8, BGR, and (H, W), uint8.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file does not hold what it should, or they differ in size.
    """
    fg, alpha = read_image(fg_path), read_alpha(alpha_path)
    check_same_size(**{f"fg '{fg_path}'": fg, f"alpha '{alpha_path}'": alpha})
    return fg, alpha


def list_images(folder: str | os.PathLike[str], name: str) -> list[str]:
    """List the images in a folder, sorted by name.

    Images end in .png, .jpg, .jpeg, .bmp, .tif or .tiff, in either case. Hidden files and folders
    are left out.

    Args:
        folder: The folder.
        name: The argument that gave it, for messages.

    Returns:
        The names of the files.

    Raises:
        FileNotFoundError: There is no such folder, or it holds no image.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{name}: expected a folder of images, got no folder '{folder}'")
    with os.scandir(os.fspath(folder)) as entries:
        found = sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES)
            and not entry.name.startswith('.')
            and entry.is_file()
        )
    if not found:
        raise FileNotFoundError(
            f"{name}: expected images ({', '.join(SUFFIXES)}) in '{folder}', got none"
        )
    return found


def images_by_stem(folder: str | os.PathLike[str], name: str) -> dict[str, str]:
    """List the images in a folder by their names without the suffix.

    Args:
        folder: The folder.
        name: The argument that gave it, for messages.

    Returns:
        The paths, in the order of `list_images`.

    Raises:
        FileNotFoundError: There is no such folder, or it holds no image.
        ValueError: Two images differ by the suffix alone.
    """
    found: dict[str, str] = {}
    for file in list_images(folder, name):
        stem, path = os.path.splitext(file)[0], os.path.join(folder, file)
        if stem in found:
            raise ValueError(
                f"{name}: expected one image a name, got '{found[stem]}' and '{path}'; remove one"
            )
        found[stem] = path
    return found
