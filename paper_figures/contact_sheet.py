"""A contact sheet of a data set: a row of images, or of the curves of sounds, for each class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from paper_figures import style

# Classes on a sheet, and pixels between images.
MOST_CLASSES = 20
GAP = 2


def sheet(images: np.ndarray, labels: np.ndarray, classes: Sequence[int], columns: int, background: int) -> np.ndarray:
    """Return uint8 (rows, width, C): the first `columns` images of each of these classes, a row for each class.

    images: uint8 (N, C, H, W). What a class has too few images for, and gaps, are of the background.
    """
    _, channels, height, width = images.shape
    rows, across = (height + GAP) * len(classes) - GAP, (width + GAP) * columns - GAP
    out = np.full((rows, across, channels), background, np.uint8)
    for row, label in enumerate(classes):
        for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
            top, left = row * (height + GAP), column * (width + GAP)
            out[top : top + height, left : left + width] = images[index].transpose(1, 2, 0)
    return out


def curves(sounds: np.ndarray, height: int = 32, width: int = 64) -> np.ndarray:
    """Return pictures of sounds, uint8 (N, 1, height, width): black from the least to the largest value in each column.

    sounds: (N, C, L) with L >= width, of which the first channel is shown, each scaled by its own largest value.
    """
    count, _, length = sounds.shape
    parts = sounds[:, 0, : length // width * width].reshape(count, width, -1).astype(np.float64)
    largest = np.maximum(np.abs(parts).max((1, 2), keepdims=True), 1e-9)[:, 0]
    top, bottom = (np.rint((1 - end / largest) / 2 * (height - 1)) for end in (parts.max(2), parts.min(2)))
    row = np.arange(height)[:, None]
    inside = (row >= top[:, None]) & (row <= bottom[:, None])
    return np.where(inside, 0, 255).astype(np.uint8)[:, None]


def draw(
    images: np.ndarray, labels: np.ndarray, max_value: int = 255, classes: Sequence[str] = (), columns: int = 10
) -> Figure:
    """Return the sheet of up to MOST_CLASSES classes, evenly chosen from all.

    images: uint8 (N, C, H, W) with C of 1 or 3. max_value: what stands for white. classes: names, else numbers.
    """
    present = np.unique(labels)
    chosen = present[np.linspace(0, len(present) - 1, min(len(present), MOST_CLASSES)).astype(int)]
    picture = sheet(images, labels, chosen, columns, max_value)
    figure, axes = style.panels(1, 1, style.WIDTH * picture.shape[0] / picture.shape[1] * 0.8 + 0.3)
    shown = picture[..., 0] if picture.shape[2] == 1 else picture / max_value
    axes.imshow(shown, cmap="gray", vmin=0, vmax=max_value if picture.shape[2] == 1 else 1, interpolation="nearest")
    height = images.shape[2]
    names = [classes[label] if classes else str(label) for label in chosen]
    axes.set_yticks([row * (height + GAP) + height / 2 for row in range(len(chosen))], names)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure
