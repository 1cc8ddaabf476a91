"""Random changes of training images, in whole batches on the device that holds them."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class RandomCropFlip:
    """Shift each image by up to `padding` pixels in both directions, and mirror it left to right with probability flip.

    The usual augmentation of CIFAR (He et al. 2016, section 4.2): a random crop of the padded image. A call takes
    normalized floats (N, C, H, W) and returns new ones of the same shape; every image draws its own shift. mode:
    "constant" pads with 0, the mean of the training split; "reflect" repeats the border, with padding < H and W.
    The numbers are drawn by PyTorch's generator of the CPU, so they do not depend on the device.
    """

    padding: int = 4
    flip: float = 0.5
    mode: Literal["constant", "reflect"] = "constant"

    def __post_init__(self) -> None:
        if isinstance(self.padding, bool) or not isinstance(self.padding, int) or self.padding < 0:
            raise ValueError(f"padding must be a whole number of at least 0, got {self.padding!r}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be a probability in [0, 1], got {self.flip!r}")
        if self.mode not in ("constant", "reflect"):
            raise ValueError(f"mode must be 'constant' or 'reflect', got {self.mode!r}")

    def __call__(self, images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        if self.mode == "reflect" and self.padding >= min(height, width):
            raise ValueError(f"padding {self.padding} cannot reflect images of {height}x{width} pixels")
        device = images.device
        top, left = torch.randint(0, 2 * self.padding + 1, (2, count)).to(device)
        mirrored = (torch.rand(count) < self.flip).to(device)
        rows = top[:, None] + torch.arange(height, device=device)
        across = torch.arange(width, device=device)
        columns = left[:, None] + torch.where(mirrored[:, None], across.flip(0), across)
        padded = F.pad(images, (self.padding,) * 4, mode=self.mode)
        image = torch.arange(count, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[:, None, None]
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
