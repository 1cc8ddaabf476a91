"""Further random changes of training images: squares cut out, crops of random size, and several changes in turn."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Cutout:
    """Set a square of `size` pixels of each image to `value`; its centre is any pixel, so it may be cut by the border.

    DeVries and Taylor 2017, arXiv:1708.04552, section 3. A call takes normalized floats (N, C, H, W), of which 0 is the
    mean, and returns new ones of the same shape.
    """

    size: int = 16
    value: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"size must be a whole number of at least 1, got {self.size!r}")

    def __call__(self, images: Tensor) -> Tensor:
        count, _, *extent = images.shape
        inside = []
        for side in extent:
            first = torch.randint(0, side, (count,)).to(images.device) - self.size // 2
            at = torch.arange(side, device=images.device)
            inside.append((at >= first[:, None]) & (at < first[:, None] + self.size))
        cut = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return images.masked_fill(cut, self.value)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut a random part out of each image, scale it to the image's size, and mirror it with probability `flip`.

    The usual augmentation of ImageNet (Szegedy et al. 2015, section 6): the part has a share `scale` of the area,
    evenly drawn, and the ratio of its sides is drawn evenly in logarithm. Where it would not fit it is made to.
    Bilinear. A call takes floats (N, C, H, W) and returns new ones of the same shape.
    """

    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two shares, 0 < least <= most <= 1, got {self.scale!r}")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two positive numbers, least <= most, got {self.ratio!r}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be a probability in [0, 1], got {self.flip!r}")

    def part_of(
        self, height: int, width: int, generator: np.random.Generator
    ) -> tuple[tuple[float, float, float, float], bool]:
        """Return the part of an image, (left, top, right, bottom) in pixels, and whether to mirror it."""
        (least, most), (flattest, highest) = self.scale, self.ratio
        area = generator.uniform(least, most) * height * width
        ratio = math.exp(generator.uniform(math.log(flattest), math.log(highest)))
        across, down = min(math.sqrt(area * ratio), width), min(math.sqrt(area / ratio), height)
        left, top = generator.uniform(0, width - across), generator.uniform(0, height - down)
        box = left, top, min(left + across, width), min(top + down, height)
        return box, bool(generator.random() < self.flip)

    def __call__(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        area = torch.empty(count).uniform_(*self.scale)
        low, high = (math.log(end) for end in self.ratio)
        ratio = torch.empty(count).uniform_(low, high).exp()
        # Shares of the height and of the width: the ratio is that of pixels.
        across = (area * ratio * height / width).sqrt().clamp(max=1.0)
        down = (area / ratio * width / height).sqrt().clamp(max=1.0)
        place = torch.rand(2, count) * 2 - 1
        sign = 1.0 - 2.0 * (torch.rand(count) < self.flip)
        # Output coordinates in -1 .. 1 become those of the part.
        matrix = torch.zeros(count, 2, 3)
        matrix[:, 0, 0], matrix[:, 0, 2] = across * sign, place[0] * (1 - across)
        matrix[:, 1, 1], matrix[:, 1, 2] = down, place[1] * (1 - down)
        grid = F.affine_grid(matrix.to(images), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


class InTurn:
    """Several changes, one after the other: each is called with what the one before returned."""

    def __init__(self, changes: Sequence[Callable[[Tensor], Tensor]]):
        self.changes = tuple(changes)
        if not self.changes or not all(map(callable, self.changes)):
            raise ValueError(f"changes must be callables of images, at least one, got {list(changes)!r}")

    def __call__(self, images: Tensor) -> Tensor:
        for change in self.changes:
            images = change(images)
        return images
