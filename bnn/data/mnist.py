"""MNIST: downloaded once with checksums, or read from a folder."""

import gzip
import hashlib
import math
from pathlib import Path

import numpy as np
import torch

from bnn.data.errors import DataError
from bnn.data.image_data import ImageData, Split
from bnn.data.splits import stratified_order

VALIDATION = 5000
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
# File -> (MD5 of the .gz as the mirrors serve it, MD5 of its content).
FILES = {
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}


def mnist(root: str | None = None, download: bool = True) -> ImageData:
    """Return MNIST: 55,000 training, 5,000 validation and 10,000 test images, 28x28 grey values.

    root: a folder with the four idx files (gzipped or not), or with a subfolder `mnist` or `MNIST/raw` that has them.
    Without it the files are downloaded once into the user's cache (not if download is False). The content of every
    file is checked by its MD5. DataError says what is missing or damaged and what to do.
    """
    train_images, train_labels, test_images, test_labels = (
        parse_idx(_content(name, root, download), name) for name in FILES
    )
    images = torch.from_numpy(train_images)[:, None]
    labels = torch.from_numpy(train_labels.astype(np.int64))
    order = torch.from_numpy(stratified_order(train_labels))
    validation, train = order[:VALIDATION], order[VALIDATION:]
    test = Split(torch.from_numpy(test_images)[:, None], torch.from_numpy(test_labels.astype(np.int64)))
    return ImageData(
        "mnist",
        Split(images[train], labels[train]),
        Split(images[validation], labels[validation]),
        test,
        num_classes=10,
    )


def _content(name: str, root: str | None, download: bool) -> bytes:
    path = _find(name, Path(root)) if root is not None else _download(name, download)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): it is damaged, remove it and fetch it again") from error
    found, expected = hashlib.md5(content).hexdigest(), FILES[name][1]
    if found != expected:
        raise DataError(
            f"{path} is damaged: the MD5 of its content is {found}, MNIST's is {expected}. Remove it and fetch it again"
        )
    return content


def _find(name: str, root: Path) -> Path:
    if not root.is_dir():
        raise DataError(
            f"data.root={root} is no folder; give the folder with MNIST's idx files, or leave it out to download"
        )
    for folder in (root, root / "mnist", root / "MNIST" / "raw"):
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise DataError(
        f"{root} has neither {name} nor {name}.gz, nor have its subfolders mnist and MNIST/raw; "
        "give the folder with MNIST's four idx files, or leave data.root out to download them"
    )


def _download(name: str, allowed: bool) -> Path:
    import pooch

    folder = Path(pooch.os_cache("bitplanes")) / "mnist"
    file = f"{name}.gz"
    if (folder / file).is_file():
        return folder / file
    if not allowed:
        raise DataError(f"{file} is not in the cache and data.download is false; allow it or give data.root=FOLDER")
    problem: Exception | None = None
    for mirror in MIRRORS:
        try:
            return Path(
                pooch.retrieve(mirror + file, f"md5:{FILES[name][0]}", fname=file, path=folder, progressbar=True)
            )
        except Exception as error:  # requests, urllib3, OSError and pooch's ValueError: all mean "not from here"
            problem = error
    raise DataError(
        f"MNIST could not be downloaded from {' or '.join(MIRRORS)} ({problem}). Check the network, or put the four "
        "idx files into a folder and give data.root=FOLDER"
    ) from problem


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
