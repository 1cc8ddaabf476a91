"""What two networks answer: how far their outputs are apart, and how often they predict the same."""

from typing import Any

import numpy as np
from torch import Tensor

from bnn.converter.capture.record import leaves
from bnn.converter.parity.report import FLOAT_TOLERANCE
from bnn.converter.tally import difference, largest_number


def outputs_of(result: Any) -> tuple[np.ndarray, ...]:
    """Return the outputs of a call of either network as arrays."""
    return tuple(part.numpy() if isinstance(part, Tensor) else part for part in leaves(result))


class Answers:
    """Sums up the answers over batches.

    The first output (N, classes, ...) predicts: a class for every input, of a map for every pixel. With fewer than two
    classes there are no predictions.
    """

    def __init__(self) -> None:
        self.predictions = self.equal = self.undecided = 0
        self.largest = 0.0
        self.finite = True
        self.classes: set[int] = set()

    def add(self, found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
        """Compare the outputs for a batch; ValueError if there are not as many, or of other shapes."""
        shapes = [y.shape for y in found], [y.shape for y in expected]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the packed network was made of another model: its outputs have shapes {shapes[0]}, those of PyTorch "
                f"{shapes[1]}"
            )
        for ours, theirs in zip(found, expected, strict=True):
            self.largest = max(self.largest, float(difference(ours, theirs).max(initial=0)))
            self.finite &= not bool(np.isnan(theirs).any())
        if expected[0].ndim > 1 and expected[0].shape[1] > 1:
            self._predict(found[0], expected[0])

    def _predict(self, found: np.ndarray, expected: np.ndarray) -> None:
        ours, theirs = (y.argmax(1)[:, None] for y in (found, expected))
        self.predictions += ours.size
        self.equal += int(np.count_nonzero(ours == theirs))
        self.classes.update(np.unique(theirs).tolist())
        # Both networks have both classes within rounding of each other.
        near = np.ones(ours.shape, bool)
        for y in (found, expected):
            apart = difference(np.take_along_axis(y, ours, 1), np.take_along_axis(y, theirs, 1))
            near &= apart <= FLOAT_TOLERANCE * largest_number(y)
        self.undecided += int(np.count_nonzero((ours != theirs) & near))

    def result(self) -> dict[str, Any]:
        """Return the fields of the report."""
        count = self.predictions
        return {
            "agreement": self.equal / count if count else None,
            "undecided": self.undecided / count if count else 0.0,
            "classes": len(self.classes),
            "max_difference": self.largest,
            "finite": self.finite,
        }
