"""ImageNet (ILSVRC 2012): 1.28 million photographs of 1,000 classes, read from class folders as they are needed."""

from collections.abc import Sequence

import torch

from bnn.data.errors import DataError
from bnn.data.files import folder_of
from bnn.data.folder import class_names, listed
from bnn.data.large_images import ImageFiles
from bnn.data.normalize import given_statistics
from bnn.data.splits import stratified_parts

# Of the training images, as all published networks are given them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet(
    root: str | None = None,
    size: int = 224,
    resize: int = 256,
    validation: float = 0.01,
    num_workers: int = 4,
    name: str = "imagenet",
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> ImageFiles:
    """Return ImageNet: its validation images, whose labels are public, are the test; training images validate.

    root: a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG, or with a subfolder `imagenet` that has them; it cannot
    be downloaded without an account of image-net.org. size: pixels of a side. resize: to what the shorter side is
    scaled before the middle is cut out. validation: share of the training images. num_workers: processes that decode.
    mean, std: with which the network wants images normalized, by channel, pixels in [0, 1]. DataError says what is
    missing and what to do. Source: Russakovsky et al. 2015, arXiv:1409.0575.
    """
    if not root:
        raise DataError(
            "data=imagenet needs data.root=FOLDER with train/CLASS/*.JPEG and val/CLASS/*.JPEG; the images are given "
            "to researchers by image-net.org"
        )
    top = folder_of(root, "ImageNet's folders train and val", download=False)
    top = top / "imagenet" if not (top / "train").is_dir() and (top / "imagenet" / "train").is_dir() else top
    for part in ("train", "val"):
        if not (top / part).is_dir():
            raise DataError(f"{top} has no folder {part}; give the folder with ImageNet's folders train and val")
    classes = class_names(top / "train")
    if not any(entry.is_dir() for entry in (top / "val").iterdir()):
        raise DataError(f"{top / 'val'} has no folders; move each image into the folder of its class, as in train")
    rest, tested = listed(top / "train", classes, top / "train"), listed(top / "val", classes, top / "train")
    if not len(tested.labels):
        raise DataError(f"{top / 'val'} holds no images; they belong into the folders of their classes, as in train")
    if int(torch.bincount(rest.labels, minlength=len(classes)).min()) == 0:
        raise DataError(f"{top / 'train'} has a class without images")
    rest, validated = stratified_parts(rest, validation, "data.validation", "more images")
    return ImageFiles(
        name, rest, validated, tested, len(classes), size, resize,
        num_workers=num_workers, classes=classes, statistics=given_statistics(mean, std, 3),
    )  # fmt: skip
