"""Fashion-MNIST: photographs of clothes in the form of MNIST, downloaded once with checksums, or read from a folder."""

from bnn.data.idx import IdxSet, load
from bnn.data.image_data import ImageData

MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
FILES = {
    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
    "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
}
CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def fashion_mnist(root: str | None = None, download: bool = True) -> ImageData:
    """Return Fashion-MNIST: 55,000 training, 5,000 validation and 10,000 test images, 28x28 grey values.

    root: a folder with the four idx files (gzipped or not), or with a subfolder `fashion-mnist` or `FashionMNIST/raw`
    that has them; Debian's package dataset-fashion-mnist has them in /usr/share/datasets. All else as `mnist`. Source:
    Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747.
    """
    within = ("fashion-mnist", "FashionMNIST/raw")
    return load(IdxSet("fashion_mnist", "Fashion-MNIST", FILES, MIRRORS, within, CLASSES), root, download)
