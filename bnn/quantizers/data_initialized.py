"""Quantizers whose learned scales begin at what the first training batch, or the first weights, suggest."""

from typing import Any

import torch
from torch import Tensor

from bnn.quantizers.base import Quantizer


class DataInitialized(Quantizer):
    """Calls `initialize(x)` once, on the first tensor that it quantizes in training mode and that is not empty.

    So a pretrained network needs one forward in training mode before it is evaluated. The buffer `initialized` tells
    a checkpoint whether that has happened. Under torch.distributed all processes take the mean of what each of them
    found.
    """

    def __init__(self) -> None:
        super().__init__()
        self.initialized: Tensor
        self.register_buffer("initialized", torch.tensor(False))
        self._done = False  # the same, known without asking the device

    def initialize(self, x: Tensor) -> None:
        """Set the learned scales from x, in place and without gradient."""
        raise NotImplementedError

    def initialize_once(self, x: Tensor) -> None:
        """Begin the forward of every subclass with this."""
        if self._done or not self.training or x.numel() == 0:
            return
        with torch.no_grad():
            self.initialize(x.detach())
            self.initialized.fill_(True)
        self._done = True

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._done = bool(self.initialized)


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of what all processes of a distributed training hold; the value itself without one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
