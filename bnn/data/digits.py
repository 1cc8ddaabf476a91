"""Handwritten digits, 8x8: the data set that is embedded in scikit-learn, so always there."""

import numpy as np
import torch

from bnn.data.image_data import ImageData, Split
from bnn.data.splits import stratified_order

TRAIN, VALIDATION, TEST = 1197, 200, 400


def digits() -> ImageData:
    """Return the 1,797 real scans of 10 digits, 8x8 grey values 0 .. 16 (UCI optical digits, the part in scikit-learn).

    1,197 training, 200 validation and 400 test images, drawn once and for all, each class in proportion.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    order = torch.from_numpy(stratified_order(labels.numpy()))
    parts = torch.split(order, [TRAIN, VALIDATION, TEST])
    train, validation, test = (Split(images[part], labels[part]) for part in parts)
    return ImageData("digits", train, validation, test, num_classes=10, max_value=16)
