"""Zero points: what the levels of an input count as where 0 is not the level 0, as pixels less their mean."""

from typing import NamedTuple

from bnn_kernels.bits.planes import level_of_code


class ZeroPoints(NamedTuple):
    """A level counts as factor * level - points[channel]; one point stands for all channels.

    What lies outside a zero-padded map counts as 0, whether some level does so or not.
    """

    factor: int
    points: tuple[int, ...]

    def largest(self, multipliers: tuple[int, ...], signed: bool) -> int:
        """Return the largest magnitude of what a level of these planes counts as."""
        levels = self.factor * level_of_code(multipliers, signed)
        return max(abs(int(levels.min()) - max(self.points)), abs(int(levels.max()) - min(self.points)))
