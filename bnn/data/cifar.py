"""CIFAR-10 and CIFAR-100: colour photographs of 32x32 pixels, downloaded once, checked, or read from a folder."""

import contextlib
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from bnn.data.errors import DataError
from bnn.data.files import check_md5, downloaded, find, folder_of
from bnn.data.image_data import ImageData, Split
from bnn.data.splits import stratified_order

MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
VALIDATION = 5000
# A record is one or two labels and the red, green and blue pixels, row by row.
PIXELS = 3 * 32 * 32
# Images of a file of CIFAR-10, of which five are for training; CIFAR-100 has one file each.
BATCH = 10_000

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Archive(NamedTuple):
    """title: for messages. files: of training and testing, with the number of their images. labels: of a record."""

    title: str
    archive: str
    md5: str
    folder: str
    train: Sequence[str]
    test: str
    labels: int


CIFAR10 = _Archive(
    "CIFAR-10", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin",
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", 1,
)  # fmt: skip
CIFAR100 = _Archive(
    "CIFAR-100", "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary",
    ("train.bin",), "test.bin", 2,
)  # fmt: skip


def cifar10(root: str | None = None, download: bool = True, name: str = "cifar10") -> ImageData:
    """Return CIFAR-10: 45,000 training, 5,000 validation and 10,000 test images, 3x32x32, ten classes.

    root: a folder with the six files of the binary version (data_batch_1.bin ... test_batch.bin), with a subfolder
    cifar-10-batches-bin that has them, or with cifar-10-binary.tar.gz. Without it the archive is downloaded once into
    the user's cache (not if download is False) and checked by its MD5. Files of a folder are checked by their size
    alone, so name what others you put there: `name` is what results say. Source: Krizhevsky 2009, "Learning multiple
    layers of features from tiny images". DataError says what is missing or damaged and what to do.
    """
    train, test = _records(CIFAR10, root, download)
    return _images(name, train, test, 0, CIFAR10_CLASSES)


def cifar100(
    root: str | None = None,
    download: bool = True,
    labels: Literal["fine", "coarse"] = "fine",
    name: str = "cifar100",
) -> ImageData:
    """Return CIFAR-100: as `cifar10`, of 100 classes ("fine") or their 20 kinds ("coarse")."""
    if labels not in ("fine", "coarse"):
        raise DataError(f"data.labels must be fine (100 classes) or coarse (20), got {labels!r}")
    train, test = _records(CIFAR100, root, download)
    fine = labels == "fine"
    classes = tuple(str(i) for i in range(100 if fine else 20))
    return _images(name if fine else f"{name}_coarse", train, test, int(fine), classes)


def _images(name: str, train: np.ndarray, test: np.ndarray, column: int, classes: tuple[str, ...]) -> ImageData:
    """Return the data set of records uint8 (N, labels + PIXELS), whose labels stand in a column."""
    splits = []
    for records in (train, test):
        labels = records[:, column].astype(np.int64)
        if labels.max() >= len(classes):
            raise DataError(f"{name} has a label {labels.max()}, but {len(classes)} classes: its files are damaged")
        pixels = np.ascontiguousarray(records[:, -PIXELS:]).reshape(-1, 3, 32, 32)
        splits.append(Split(torch.from_numpy(pixels), torch.from_numpy(labels)))
    order = torch.from_numpy(stratified_order(splits[0].labels.numpy()))
    validation, rest = (
        Split(splits[0].images[part], splits[0].labels[part]) for part in (order[:VALIDATION], order[VALIDATION:])
    )
    return ImageData(name, rest, validation, splits[1], num_classes=len(classes), classes=classes)


def _records(archive: _Archive, root: str | None, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the records of training and testing, uint8 (N, labels + PIXELS)."""
    with _opened(archive, root, download) as read:
        train = [_parse(archive, name, read(name), 5 * BATCH // len(archive.train)) for name in archive.train]
        return np.concatenate(train), _parse(archive, archive.test, read(archive.test), BATCH)


def _parse(archive: _Archive, name: str, content: bytes, images: int) -> np.ndarray:
    record = archive.labels + PIXELS
    if len(content) != images * record:
        raise DataError(
            f"{name} of {archive.title} must have {images * record:,} bytes, {images:,} images, but has "
            f"{len(content):,}: it is damaged, or not the binary version. Fetch {archive.archive} again"
        )
    return np.frombuffer(content, np.uint8).reshape(images, record)


@contextlib.contextmanager
def _opened(archive: _Archive, root: str | None, download: bool) -> Iterator[Callable[[str], bytes]]:
    """Give what reads a file of the data set by its name."""
    if root is None:
        path = downloaded(archive.title, archive.archive, archive.md5, MIRRORS, archive.folder, download)
    else:
        folder = folder_of(root, f"{archive.title}'s binary version")
        loose = find(folder, (archive.test,), (archive.folder,))
        if loose is not None:
            yield _reader_of_files(archive, loose.parent)
            return
        packed = find(folder, (archive.archive,))
        if packed is None:
            pickles = archive.folder.replace("-bin", "-py").replace("binary", "python")
            hint = f" {pickles} is the version for Python, which is read by nobody here." * (folder / pickles).is_dir()
            raise DataError(
                f"{folder} has neither {archive.test}, nor a subfolder {archive.folder} with it, nor "
                f"{archive.archive}.{hint} Give the folder with {archive.title}'s binary version, or leave data.root "
                "out to download it"
            )
        path = packed
    check_md5(path, archive.md5, archive.title)
    try:
        with tarfile.open(path) as tar:

            def member(name: str) -> bytes:
                file = tar.extractfile(f"{archive.folder}/{name}")
                if file is None:
                    raise KeyError(name)
                return file.read()

            yield member
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}): it is damaged, remove it and fetch it again") from error


def _reader_of_files(archive: _Archive, folder: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"{folder} lacks {name} of {archive.title}: {error.strerror or error}") from error

    return read
