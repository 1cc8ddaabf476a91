"""The idx files of MNIST and of the data sets that took its form: four files, 28x28 grey values, ten classes."""

import gzip
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bnn.data.errors import DataError
from bnn.data.files import check_md5, downloaded, find, folder_of
from bnn.data.image_data import ImageData, Split
from bnn.data.splits import stratified_order

VALIDATION = 5000


class IdxSet(NamedTuple):
    """Where the files of one data set are.

    files: name -> (MD5 of the .gz as the mirrors serve it, MD5 of its content): images and labels for training, then
    for testing. within: subfolders of data.root that may hold them.
    """

    name: str
    title: str
    files: Mapping[str, tuple[str, str]]
    mirrors: Sequence[str]
    within: Sequence[str]
    classes: tuple[str, ...]


def load(idx: IdxSet, root: str | None, download: bool) -> ImageData:
    """Return the data set, of which the last VALIDATION training images of a fixed order are the validation split."""
    train_images, train_labels, test_images, test_labels = (
        parse_idx(_content(idx, name, root, download), name) for name in idx.files
    )
    images = torch.from_numpy(train_images)[:, None]
    labels = torch.from_numpy(train_labels.astype(np.int64))
    order = torch.from_numpy(stratified_order(train_labels))
    validation, train = order[:VALIDATION], order[VALIDATION:]
    test = Split(torch.from_numpy(test_images)[:, None], torch.from_numpy(test_labels.astype(np.int64)))
    return ImageData(
        idx.name,
        Split(images[train], labels[train]),
        Split(images[validation], labels[validation]),
        test,
        num_classes=10,
        classes=idx.classes,
    )


def _content(idx: IdxSet, name: str, root: str | None, download: bool) -> bytes:
    served, expected = idx.files[name]
    if root is None:
        path = downloaded(idx.title, f"{name}.gz", served, idx.mirrors, idx.name, download)
    else:
        path = _find(idx, name, folder_of(root, f"{idx.title}'s four idx files"))
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): it is damaged, remove it and fetch it again") from error
    check_md5(path, expected, idx.title, content)
    return content


def _find(idx: IdxSet, name: str, root: Path) -> Path:
    path = find(root, (name, f"{name}.gz"), idx.within)
    if path is None:
        raise DataError(
            f"{root} has neither {name} nor {name}.gz, nor have its subfolders {' and '.join(idx.within)}; "
            f"give the folder with {idx.title}'s four idx files, or leave data.root out to download them"
        )
    return path


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """Return the uint8 array of an idx file. DataError if its header and its length do not agree.

    The format: two zero bytes, type 8 (uint8), the number of axes, each extent as big-endian uint32, the data.
    """
    axes = content[3] if len(content) >= 4 else 0
    header = 4 + 4 * axes
    if content[:3] != b"\0\0\x08" or len(content) < header:
        raise DataError(f"{name} is no idx file of bytes: it begins with {content[:4].hex() or 'nothing'}")
    shape = [int(n) for n in np.frombuffer(content, ">u4", axes, 4)]
    if len(content) != header + math.prod(shape):
        raise DataError(f"{name} should hold {shape} bytes of data, but has {len(content) - header}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
