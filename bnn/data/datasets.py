"""Any torch.utils.data.Dataset of labelled images, read once into memory."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn.data.errors import DataError
from bnn.data.image_data import ImageData, Split
from bnn.data.splits import stratified_parts


def datasets(
    train: Any,
    test: Any = None,
    validation: Any = None,
    name: str | None = None,
    shares: tuple[float, float] = (0.1, 0.2),
) -> ImageData:
    """Return what map-style data sets hold: train, and maybe test and validation.

    An item is (image, label): the image a Pillow image, a uint8 array or tensor (H, W), (H, W, C) or (C, H, W) with C
    of 1 or 3, or floats of 0 .. 1 in these shapes, which become bytes; all of one size. The label is a whole number
    from 0 on. shares: (validation, test), of the training images, that become these splits if none are given, drawn
    once and for all. name: what results call the data, the class of `train` by default. DataError says which item
    cannot be used.
    """
    splits = [None if one is None else _read(one, word) for one, word in ((train, "train"), (test, "test"),
                                                                         (validation, "validation"))]  # fmt: skip
    rest, tested, validated = splits
    if rest is None:
        raise DataError("datasets needs a data set to train on: data.train._target_=MODULE.CLASS")
    if tested is None:
        rest, tested = stratified_parts(rest, shares[1], "data.shares", "a data set data.test")
    if validated is None:
        rest, validated = stratified_parts(rest, shares[0], "data.shares", "a data set data.validation")
    classes = int(max(split.labels.max() for split in (rest, validated, tested))) + 1
    return ImageData(name or type(train).__name__, rest, validated, tested, num_classes=classes)


def _read(given: Any, word: str) -> Split:
    if not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
        raise DataError(f"data.{word} is no data set with a length and items, but a {type(given).__name__}")
    images: list[Tensor] = []
    labels: list[int] = []
    for index in range(len(given)):
        item = given[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"item {index} of data.{word} is no pair (image, label), but a {type(item).__name__}")
        image = _image(item[0], f"the image of item {index} of data.{word}")
        if images and image.shape != images[0].shape:
            raise DataError(
                f"item {index} of data.{word} is {tuple(image.shape)}, those before {tuple(images[0].shape)}; resize "
                "them in the data set, or use data=folder"
            )
        label = item[1]
        if not _is_class(label):
            raise DataError(f"the label of item {index} of data.{word} is {label!r}, not a whole number from 0 on")
        images.append(image)
        labels.append(int(label))
    if not images:
        raise DataError(f"data.{word} holds no item")
    return Split(torch.stack(images), torch.tensor(labels, dtype=torch.int64))


def _is_class(label: Any) -> bool:
    """Whether a label is a whole number from 0 on, of Python, NumPy or PyTorch."""
    try:
        return not isinstance(label, bool | str) and int(label) == label and label >= 0
    except (TypeError, ValueError, RuntimeError):
        return False


def _image(given: Any, what: str) -> Tensor:
    try:
        x = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} is no image, array or tensor, but a {type(given).__name__}") from error
    if x.is_floating_point():
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise DataError(f"{what} has floats outside 0 .. 1; leave normalization out, the training does it")
        x = (x * 255).round().to(torch.uint8)
    if x.ndim == 2:
        x = x[None]
    if x.dtype != torch.uint8 or x.ndim != 3 or not {x.shape[0], x.shape[2]} & {1, 3}:
        raise DataError(f"{what} must be uint8 (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels, got {x.dtype} "
                        f"{tuple(x.shape)}")  # fmt: skip
    return (x if x.shape[0] in (1, 3) else x.permute(2, 0, 1)).contiguous()
