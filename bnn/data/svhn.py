"""SVHN: digits of house numbers in street photographs, downloaded once with checksums, or read from a folder."""

import numpy as np
import torch

from bnn.data.files import checked_file
from bnn.data.image_data import ImageData, Split
from bnn.data.splits import stratified_order

MIRRORS = ("http://ufldl.stanford.edu/housenumbers/",)
VALIDATION = 6000
FILES = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
}


def svhn(root: str | None = None, download: bool = True, extra: bool = False) -> ImageData:
    """Return SVHN's cropped digits: 67,257 training, 6,000 validation and 26,032 test images, 3x32x32, ten classes.

    extra: also train on the 531,131 easier images of the extra split (1.6 GB in memory), as BinaryNet and DoReFa-Net
    did. root: a folder with train_32x32.mat and test_32x32.mat (and extra_32x32.mat), or with a subfolder `svhn` that
    has them; without it they are downloaded once into the user's cache (not if download is False). Each is checked by
    its MD5. Source: Netzer et al. 2011, "Reading digits in natural images with unsupervised feature learning".
    DataError says what is missing or damaged and what to do.
    """
    train, test = _split("train_32x32.mat", root, download), _split("test_32x32.mat", root, download)
    order = torch.from_numpy(stratified_order(train.labels.numpy()))
    validation, rest = (
        Split(train.images[part], train.labels[part]) for part in (order[:VALIDATION], order[VALIDATION:])
    )
    if extra:
        more = _split("extra_32x32.mat", root, download)
        rest = Split(torch.cat([rest.images, more.images]), torch.cat([rest.labels, more.labels]))
    digits = tuple(map(str, range(10)))
    return ImageData("svhn_extra" if extra else "svhn", rest, validation, test, num_classes=10, classes=digits)


def _split(name: str, root: str | None, download: bool) -> Split:
    from scipy.io import loadmat

    path = checked_file("SVHN", name, FILES[name], MIRRORS, ("svhn", "SVHN"), root, download)
    content = loadmat(path)
    # X: (row, column, colour, image); y: (image, 1), in which 10 is the digit 0.
    images = np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1))
    labels = content["y"].reshape(-1).astype(np.int64) % 10
    return Split(torch.from_numpy(images), torch.from_numpy(labels))
