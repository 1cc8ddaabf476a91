"""What lies between a layer and the next input quantizer, as one monotone function of each channel.

Scale, bias, batch norm and rising activations move no number of a channel past another, and max pooling commutes with
all of them. So whatever that stretch of a network is, the next quantizer's levels are thresholds on the layer's own
output, and pooling is a maximum or (where the rest falls) a minimum of levels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bnn.converter.chain import Link
from bnn.converter.thresholds import LevelTable, input_term
from bnn.layers import QuantConv2d, QuantLinear

NOTHING = (nn.Dropout, nn.Dropout2d, nn.Identity)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# Rising functions of one number, so they move no level past another.
RISING = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
# Far beyond what a network computes, and far enough from the end of float32 that a batch norm does not overflow.
LARGEST_FLOAT = 2.0**60


@dataclass(frozen=True)
class MonotoneRun:
    """The links from one place to the next quantized layer, all monotone by channel.

    links: what lies between; following: the quantized layer's link; channels: of the values that enter;
    pools: the places of max pooling in links.
    """

    links: list[Link]
    following: Link
    channels: int

    @classmethod
    def starting(cls, links: list[Link], at: int, entering: tuple[int, ...]) -> "MonotoneRun | None":
        """Return the run from links[at] on, where values of this shape enter; None if it is not monotone."""
        pixels, flattened = int(np.prod(entering[1:])), False
        for place in range(at, len(links)):
            module = links[place].module
            if isinstance(module, QuantConv2d | QuantLinear):
                # Only the input scale needs the floats that a fusion would never compute.
                fits = module.input_quantizer.packable and not module.input_scale
                # Behind a flatten a channel's pixels are channels of their own.
                fits = fits and not (flattened and module.input_quantizer.channelwise)
                return cls(links[at:place], links[place], entering[0]) if fits else None
            if isinstance(module, nn.Flatten):
                if (module.start_dim, module.end_dim) != (1, -1):
                    return None
                flattened = flattened or pixels > 1
            elif isinstance(module, NORMS):
                if flattened or module.running_mean is None:
                    return None  # its channels are pixels now, or its numbers those of the batch
            elif not isinstance(module, (*NOTHING, *RISING, nn.MaxPool2d)):
                return None
            pixels = int(np.prod(links[place].shape[1:])) if len(links[place].shape) > 1 else pixels
        return None

    @property
    def pools(self) -> list[int]:
        return [i for i, link in enumerate(self.links) if isinstance(link.module, nn.MaxPool2d)]

    @property
    def source(self) -> str:
        """Where the parity report can check the levels that come out."""
        return f"{self.following.path} input"

    @property
    def table(self) -> LevelTable:
        """The levels of the following quantizer."""
        quantizer = self.following.module.input_quantizer
        return LevelTable.of(input_term(quantizer, torch.zeros(1, 1), self.following.path))  # type: ignore[arg-type]

    def apply(self, y: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Run links first..last on floats (T, channels), pooling left out."""
        for link in self.links[first:last]:
            if isinstance(link.module, nn.BatchNorm2d):
                y = link.module(y[..., None, None])[..., 0, 0]
            elif isinstance(link.module, (*RISING, nn.BatchNorm1d)):
                y = link.module(y)
        return y

    def levels(self, y: Tensor) -> Tensor:
        """Return the integer levels of floats (T, channels) after the whole run."""
        planes = self.following.module.input_quantizer.planes(self.apply(y))  # type: ignore[operator,union-attr]
        return planes.terms[0].levels()

    def rises(self, first: int, last: int | None, enter: Callable[[Tensor], Tensor] = lambda y: y) -> np.ndarray:
        """Return bool (channels,): whether links first..last do not fall. `enter` comes before the first of them."""
        ends = torch.tensor([[-LARGEST_FLOAT], [LARGEST_FLOAT]]).expand(2, self.channels)
        low, high = self.apply(enter(ends), first, last)
        return (high >= low).numpy().copy()
