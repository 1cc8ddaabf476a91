"""MNIST: handwritten digits, downloaded once with checksums, or read from a folder."""

from bnn.data.idx import IdxSet, load
from bnn.data.image_data import ImageData

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
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
    file is checked by its MD5. DataError says what is missing or damaged and what to do. Source: LeCun, Cortes and
    Burges, "The MNIST database of handwritten digits".
    """
    digits = tuple(map(str, range(10)))
    return load(IdxSet("mnist", "MNIST", FILES, MIRRORS, ("mnist", "MNIST/raw"), digits), root, download)
