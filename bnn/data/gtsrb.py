"""GTSRB: photographs of German traffic signs, downloaded once with checksums, or read from a folder."""

import csv
import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bnn.data.files import checked_file
from bnn.data.image_data import ImageData, Split
from bnn.data.image_files import read_image, size_of
from bnn.data.splits import stratified_order

MIRRORS = ("https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/",)
FILES = {
    "GTSRB_Final_Training_Images.zip": "f33fd80ac59bff73c82d25ab499e03a3",
    "GTSRB_Final_Test_Images.zip": "c7e4e6327067d32654124b0fe9e82185",
    "GTSRB_Final_Test_GT.zip": "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
}
CLASSES = 43
# One in so many tracks of a class is for validation.
TRACKS = 10
_TRAINING = re.compile(r"GTSRB/Final_Training/Images/(\d{5})/(\d{5})_(\d{5})\.ppm")


def gtsrb(root: str | None = None, download: bool = True, size: int | tuple[int, int] = 32) -> ImageData:
    """Return GTSRB: 39,209 images of 43 signs to train and validate on and 12,630 test images, as 3 x size x size.

    About thirty images, a track, are of one and the same sign, so whole tracks are for validation, about one in ten of
    each class. Images of 15 to 250 pixels are scaled to `size`, pixels or [height, width], see `read_image`. root: a
    folder with the three .zip files, or with a subfolder `gtsrb` that has them; without it they are downloaded once
    into the user's cache (not if download is False). Each is checked by its MD5. Source: Stallkamp et al. 2012, "Man
    vs. computer". DataError says what is missing or damaged and what to do.
    """
    sides = size_of(size)
    training, images, truth = (
        checked_file("GTSRB", name, md5, MIRRORS, ("gtsrb", "GTSRB"), root, download) for name, md5 in FILES.items()
    )
    rest, validation = _training(training, sides)
    return ImageData("gtsrb", rest, validation, _testing(images, truth, sides), num_classes=CLASSES)


def _read(archive: zipfile.ZipFile, names: Sequence[str], sides: tuple[int, int]) -> torch.Tensor:
    out = np.empty((len(names), 3, *sides), np.uint8)
    for row, name in enumerate(names):
        with archive.open(name) as file:
            out[row] = read_image(file, sides, 3, name)
    return torch.from_numpy(out)


def _training(path: Path, sides: tuple[int, int]) -> tuple[Split, Split]:
    """Return the images to train on and those of validation: whole tracks."""
    with zipfile.ZipFile(path) as archive:
        found = [match for match in map(_TRAINING.fullmatch, sorted(archive.namelist())) if match is not None]
        names = [match[0] for match in found]
        images = _read(archive, names, sides)
    labels = np.array([int(match[1]) for match in found], np.int64)
    tracks = np.array([(int(match[1]), int(match[2])) for match in found])
    each, track = np.unique(tracks, axis=0, return_inverse=True)
    held = np.zeros(len(each), bool)
    for label in np.unique(each[:, 0]):
        own = np.flatnonzero(each[:, 0] == label)
        order = own[stratified_order(np.zeros(len(own), np.int64))]
        held[order[: max(1, round(len(own) / TRACKS))]] = True
    chosen = torch.from_numpy(held[track.reshape(-1)])
    every = torch.from_numpy(labels)
    return Split(images[~chosen], every[~chosen]), Split(images[chosen], every[chosen])


def _testing(path: Path, truth: Path, sides: tuple[int, int]) -> Split:
    with zipfile.ZipFile(truth) as archive:
        text = archive.read("GT-final_test.csv").decode()
    rows = sorted((row["Filename"], int(row["ClassId"])) for row in csv.DictReader(io.StringIO(text), delimiter=";"))
    with zipfile.ZipFile(path) as archive:
        images = _read(archive, [f"GTSRB/Final_Test/Images/{name}" for name, _ in rows], sides)
    return Split(images, torch.tensor([label for _, label in rows], dtype=torch.int64))
