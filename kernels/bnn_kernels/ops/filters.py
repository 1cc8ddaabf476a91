"""What is known of a layer's filters before their weights are read: enough to choose the kernels that multiply them."""

import math
from collections.abc import Sequence

import numpy as np

from bnn_kernels.bits.planes import check_planes, level_of_code
from bnn_kernels.bits.sum_range import largest_level


class Filters:
    """Filters of shape (O, C/groups, kh, kw) in planes, see `bits.planes`."""

    def __init__(self, shape: Sequence[int], multipliers: Sequence[int], signed: bool, groups: int):
        self.shape = tuple(shape)
        self.groups = groups
        self.multipliers = check_planes(multipliers, signed)
        self.signed = bool(signed)

    @property
    def filters(self) -> int:
        """Filters of a group."""
        return self.shape[0] // self.groups

    @property
    def channels(self) -> int:
        """Input channels of a group."""
        return self.shape[1]

    @property
    def products(self) -> int:
        """Products that an output is a sum of."""
        return math.prod(self.shape[1:])

    @property
    def level_values(self) -> np.ndarray:
        """The levels of all codes, int64 (2**P,)."""
        return level_of_code(self.multipliers, self.signed)

    @property
    def largest(self) -> int:
        """Largest magnitude of a level."""
        return largest_level(self.multipliers, self.signed)
