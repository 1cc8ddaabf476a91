"""Image files of any format and size as bytes of one size."""

from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bnn.data.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

# What Pillow reads and people keep images in.
SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def size_of(size: object) -> tuple[int, int]:
    """Return (height, width) of data.size, one number or two; DataError if it is neither."""
    sides = [size, size] if isinstance(size, int) and not isinstance(size, bool) else size
    try:
        height, width = (int(side) for side in sides)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise DataError(f"data.size must be a number of pixels, or [height, width], got {size!r}")
    return height, width


def opened(file: Path | IO[bytes], channels: int, name: object = None) -> "Image.Image":
    """Return a Pillow image of 1 (grey) or 3 (red, green, blue) channels; DataError names a file that is none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name or file} is no image that can be read: {error}") from error


def read_image(file: Path | IO[bytes], size: tuple[int, int], channels: int, name: object = None) -> np.ndarray:
    """Return uint8 (channels, height, width) of an image file.

    The image is scaled until it covers (height, width), bilinearly over all of its pixels, and the middle is cut out.
    channels: 1 (grey) or 3 (red, green, blue). DataError names a file that is no image.
    """
    from PIL import Image, ImageOps

    if channels not in (1, 3):
        raise DataError(f"data.channels must be 1 (grey) or 3 (colour), got {channels!r}")
    whole = opened(file, channels, name)
    fitted = ImageOps.fit(whole, (size[1], size[0]), method=Image.Resampling.BILINEAR)
    return np.asarray(fitted, np.uint8).reshape(*size, channels).transpose(2, 0, 1)


def read_images(files: Iterable[Path], count: int, size: tuple[int, int], channels: int) -> Tensor:
    """Return uint8 (count, channels, height, width) of image files, with a bar where they are many."""
    out = np.empty((count, channels, *size), np.uint8)
    for row, file in enumerate(progress(files, count)):
        out[row] = read_image(file, size, channels)
    return torch.from_numpy(out)


def progress(files: Iterable[Path], count: int, many: int = 2000) -> Iterable[Path]:
    """Show a bar on a terminal while many files are read."""
    from tqdm import tqdm

    return tqdm(files, "reading images", count, unit="image", disable=None if count >= many else True, leave=False)
