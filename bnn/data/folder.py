"""One's own images: a folder with a folder for each class."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from bnn.data.errors import DataError
from bnn.data.image_data import ImageData, Split
from bnn.data.image_files import SUFFIXES, read_images, size_of
from bnn.data.large_images import FileSplit, ImageFiles
from bnn.data.normalize import given_statistics
from bnn.data.splits import P, stratified_parts

# Names that the folder of a split may have.
SPLITS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing")}


def folder(
    root: str | None = None,
    size: int | tuple[int, int] = 32,
    channels: int = 3,
    validation: float = 0.1,
    test: float = 0.2,
    name: str | None = None,
    in_memory: bool = True,
    num_workers: int = 2,
    resize: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageData | ImageFiles:
    """Return the images of a folder, of any formats and sizes, as bytes of one size in memory.

    root: holds a folder for each class with its images, in it or below; or folders `train`, `test` and maybe
    `validation` (or `val`) that do. Classes are numbered in the order of their names, those of `train`. size: of the
    result, pixels or [height, width]; an image is scaled to cover it and cut in the middle. channels: 1 (grey) or 3.
    validation, test: shares of all images (of the training images) that become these splits if no folder has them:
    drawn once and for all, each class in proportion, the same for every run. name: what results call the data, the
    folder's by default. in_memory: false leaves them in their files, for more than memory holds: num_workers processes
    decode them for each batch, which in evaluation have their shorter side scaled to `resize` (8/7 of size by default)
    and the middle cut out. mean, std: of the channels, pixels in [0, 1], with which a pretrained network wants images
    normalized; those of the training images by default. DataError says what is missing or cannot be read.
    """
    if not root:
        raise DataError("data=folder needs data.root=FOLDER, the folder with a folder of images for each class")
    top = Path(root).expanduser()
    if not top.is_dir():
        raise DataError(f"data.root={root} is no folder; give the folder with a folder of images for each class")
    sides = size_of(size)
    parts = {split: next((top / n for n in names if (top / n).is_dir()), None) for split, names in SPLITS.items()}
    if parts["train"] is None and any(parts.values()):
        found = next(path for path in parts.values() if path is not None)
        raise DataError(f"{top} has a folder {found.name} but no folder train; images to train on belong there")
    training = parts["train"] or top
    classes = class_names(training)
    rest = listed(training, classes, training)
    empty = [one for label, one in enumerate(classes) if not (rest.labels == label).any()]
    if empty:
        raise DataError(f"{training} has no image of {', '.join(empty)}; a class's folder must hold images "
                        f"({' '.join(sorted(SUFFIXES))})")  # fmt: skip
    tested = None if parts["test"] is None else listed(parts["test"], classes, training)
    validated = None if parts["validation"] is None else listed(parts["validation"], classes, training)
    called = name or top.resolve().name
    statistics = given_statistics(mean, std, channels)
    if in_memory:

        def read(part: FileSplit) -> Split:
            return Split(read_images(part.files, len(part.files), sides, channels), part.labels)

        held = [None if part is None else read(part) for part in (tested, validated)]
        images = _divided(read(rest), held[0], held[1], test, validation)
        return ImageData(called, *images, num_classes=len(classes), classes=classes, statistics=statistics)
    if sides[0] != sides[1]:
        raise DataError(f"data.in_memory=false takes square images: give one number as data.size, got {size!r}")
    scaled = round(sides[0] * 8 / 7) if resize is None else resize
    files = _divided(rest, tested, validated, test, validation)
    return ImageFiles(called, *files, len(classes), sides[0], scaled, channels, num_workers, classes, statistics)


def _divided(rest: P, tested: P | None, validated: P | None, test: float, validation: float) -> tuple[P, P, P]:
    """Return what is left to train on, validation and test; shares of the training images where there are none."""
    if tested is None:
        rest, tested = stratified_parts(rest, test, "data.test", "a folder test")
    if validated is None:
        rest, validated = stratified_parts(rest, validation, "data.validation", "a folder validation")
    return rest, validated, tested


def class_names(training: Path) -> tuple[str, ...]:
    """Return the names of the folders of classes, sorted; DataError if they cannot be such."""
    classes = tuple(sorted(entry.name for entry in training.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if len(classes) < 2:
        raise DataError(f"{training} must hold a folder for each class, at least two; it has {len(classes)}: {classes}")
    if len(set(map(str.casefold, classes)) & {n for names in SPLITS.values() for n in names}) > 1:
        raise DataError(f"{training} holds {', '.join(classes)}, which are no classes; give the folder above them")
    return classes


def listed(where: Path, classes: Sequence[str], training: Path) -> FileSplit:
    """Return the image files of the classes' folders; DataError for folders of others than those of `training`."""
    strange = {entry.name for entry in where.iterdir() if entry.is_dir() and entry.name[0] != "."} - set(classes)
    if strange:
        raise DataError(f"{where} has classes that {training} has not: {', '.join(sorted(strange))}")
    files = [(file, label) for label, one in enumerate(classes) for file in _images(where / one)]
    return FileSplit([file for file, _ in files], torch.tensor([label for _, label in files], dtype=torch.int64))


def _images(where: Path) -> list[Path]:
    """Return the image files below a folder in the order of their paths, none if there is no such folder."""
    found = [
        Path(folder) / file
        for folder, _, files in os.walk(where, followlinks=True)
        for file in files
        if Path(file).suffix.lower() in SUFFIXES and file[0] != "."
    ]
    return sorted(found)
