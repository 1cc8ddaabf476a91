"""Fixed splits: the same for every run, whatever its seed."""

import numpy as np

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
