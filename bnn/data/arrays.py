"""One's own arrays: images and labels in a .npz file."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from bnn.data.errors import DataError
from bnn.data.image_data import ImageData, Split
from bnn.data.normalize import given_statistics
from bnn.data.splits import stratified_parts

# Names of the arrays of a split: images, labels. The first pair is what the guide shows.
NAMES = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels"), ("x", "y")),
    "validation": (("x_validation", "y_validation"), ("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}


def arrays(
    file: str | None = None,
    layout: Literal["auto", "nchw", "nhwc"] = "auto",
    validation: float = 0.1,
    test: float = 0.2,
    name: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageData:
    """Return the images of a .npz file: x_train and y_train, and maybe x_test, y_test, x_validation, y_validation.

    Images are uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), labels whole numbers from 0 on, (N,) or (N, 1); arrays
    that are called images and labels, or x and y, are taken for all splits. layout: of four axes, "auto" if the
    channels, 1 or 3, can be told from the shape. validation, test: shares that become these splits if the file has
    none, drawn once and for all, the same for every run. name: what results call the data, the file's by default.
    mean, std: of the channels, pixels in [0, 1], with which a pretrained network wants images normalized; those of the
    training images by default. DataError says what is missing or cannot be used.
    """
    if not file:
        raise DataError("data=arrays needs data.file=FILE.npz with the arrays x_train, y_train, x_test and y_test")
    path = Path(file).expanduser()
    if layout not in ("auto", "nchw", "nhwc"):
        raise DataError(f"data.layout must be auto, nchw or nhwc, got {layout!r}")
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise DataError(f"{path} holds one array; save images and labels with numpy.savez")
        with content:
            found = {one: content[one] for one in content.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no .npz file that can be read: {error}") from error
    splits = {split: _split(found, pairs, layout, path) for split, pairs in NAMES.items()}
    rest, tested, validated = splits["train"], splits["test"], splits["validation"]
    if rest is None:
        raise DataError(f"{path} has no x_train and y_train; it has {', '.join(found) or 'nothing'}")
    if tested is None:
        rest, tested = stratified_parts(rest, test, "data.test", "the arrays x_test and y_test")
    if validated is None:
        rest, validated = stratified_parts(rest, validation, "data.validation", "the arrays x_validation, y_validation")
    for split in (validated, tested):
        if split.images.shape[1:] != rest.images.shape[1:]:
            shapes = [tuple(one.images.shape[1:]) for one in (rest, split)]
            raise DataError(f"{path}: images for training are {shapes[0]}, others {shapes[1]}")
    classes = int(max(split.labels.max() for split in (rest, validated, tested))) + 1
    statistics = given_statistics(mean, std, rest.images.shape[1])
    return ImageData(name or path.stem, rest, validated, tested, num_classes=classes, statistics=statistics)


def _split(found: dict[str, np.ndarray], pairs: tuple[tuple[str, str], ...], layout: str, path: Path) -> Split | None:
    for images, labels in pairs:
        if images in found and labels in found:
            return Split(_images(found[images], layout, images, path), _labels(found[labels], labels, path))
        if images in found or labels in found:
            raise DataError(f"{path} has only one of {images} and {labels}")
    return None


def _images(x: np.ndarray, layout: str, name: str, path: Path) -> torch.Tensor:
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or 0 in x.shape:
        raise DataError(
            f"{name} of {path} must be uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), got {x.dtype} {x.shape}; pixels "
            "of 0 .. 1 become bytes by numpy.round(255 * x).astype('uint8')"
        )
    if x.ndim == 3:
        return torch.from_numpy(x[:, None].copy())
    if layout == "auto":
        first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
        if first == last:
            raise DataError(f"{name} of {path} is {x.shape}: say where its channels stand, data.layout=nchw or nhwc")
        layout = "nchw" if first else "nhwc"
    return torch.from_numpy(np.ascontiguousarray(x if layout == "nchw" else x.transpose(0, 3, 1, 2)))


def _labels(y: np.ndarray, name: str, path: Path) -> torch.Tensor:
    flat = y.reshape(-1) if y.shape[1:] in ((), (1,)) else y
    if flat.ndim != 1 or flat.dtype.kind not in "iu" or not len(flat) or flat.min() < 0:
        raise DataError(
            f"{name} of {path} must be whole numbers from 0 on, the class of each image, got {y.dtype} {y.shape}"
        )
    return torch.from_numpy(flat.astype(np.int64))
