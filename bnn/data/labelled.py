"""What data sets of images and of sounds share: counts, statistics of the training split, and how they normalize."""

from typing import Any

import torch
from torch import Tensor

from bnn.data.normalize import Normalize
from bnn.data.training_data import SplitName


class Labelled:
    """A data set whose splits have `labels`; a subclass gives `_statistics`, computed once, and these names.

    max_value: the number in a file that stands for 1.0.
    """

    max_value: Any
    input_shape: Any
    _statistics: Any

    def count(self, split: SplitName) -> int:
        """Return the number of examples of a split."""
        return len(getattr(self, split).labels)

    def blank(self) -> Tensor:
        """Return one example of zeros, float32 (1, *input_shape)."""
        return torch.zeros(1, *self.input_shape)

    @property
    def mean(self) -> Tensor:
        """Mean of each channel over the training split, as a share of max_value, float32 (C,)."""
        mean: Tensor = self._statistics[0]
        return mean

    @property
    def std(self) -> Tensor:
        """Standard deviation of each channel over the training split, as a share of max_value, float32 (C,)."""
        std: Tensor = self._statistics[1]
        return std

    def normalizer(self) -> Normalize:
        """Return the map from integers to floats with mean 0 and deviation 1 over the training split."""
        return Normalize(self.mean, self.std, self.max_value)
