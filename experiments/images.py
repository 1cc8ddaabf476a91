"""Random images for a network, as it takes them: what speed and memory are measured on."""

from collections.abc import Sequence
from typing import Any


def random_images(network: Any, count: int, shape: Sequence[int]) -> Any:
    """Return a tensor (count, *shape): uint8 pixels for a network that takes pixels, else normal floats."""
    import torch

    import bnn

    generator = torch.Generator().manual_seed(0)
    if bnn.takes_pixels(network):
        return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return torch.randn(count, *shape, generator=generator)
