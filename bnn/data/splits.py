"""Fixed splits: the same for every run, whatever its seed."""

from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from bnn.data.errors import DataError


class Part(Protocol):
    """Labelled examples, of which some can be taken: Split, FileSplit."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,)."""
        ...

    def taken(self, index: Tensor) -> Self:
        """Return the examples of some indices."""
        ...


P = TypeVar("P", bound=Part)

# The splits' own seed. Changing it makes all earlier results incomparable.
SPLIT_SEED = 20160316


def stratified_order(labels: np.ndarray) -> np.ndarray:
    """Return a fixed permutation of int64 indices in which every stretch holds the classes in about equal proportion.

    Within each class the order is random; the i-th of n samples of a class stands at about i/n of the whole.
    """
    generator = np.random.Generator(np.random.PCG64(SPLIT_SEED))
    shuffled = generator.permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + generator.random()) / len(members)
    return np.argsort(place, kind="stable")


def stratified_parts(split: P, share: float, option: str, instead: str) -> tuple[P, P]:
    """Return (what is left, the share) of a split, each class in about equal proportion in both.

    option: the name of the share, for the DataError if it leaves one of the two empty; instead: what else helps.
    """
    count = len(split.labels)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise DataError(f"{option} must be a share between 0 and 1, got {share!r}")
    taken = round(share * count)
    if not 0 < taken < count:
        raise DataError(f"{option}={share} of {count} images is {taken}; give another share, or {instead}")
    order = torch.from_numpy(stratified_order(split.labels.numpy()))
    return split.taken(order[taken:]), split.taken(order[:taken])
