"""PyTorch as it is, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.engines.base import Loaded

if TYPE_CHECKING:  # a packed network runs without torch
    from torch import Tensor, nn

_FILE = "model.pt"


class PyTorch:
    """Runs a network in FP32."""

    name = "pytorch"
    libraries: tuple[str, ...] = ()
    extra = ""

    def build(self, model: nn.Module, example: Tensor, batches: Sequence[Tensor], folder: Path) -> None:
        """Save the whole module."""
        import torch

        torch.save(model, folder / _FILE)

    def load(self, folder: Path, threads: int, batch: int | None = None, counted: bool = True) -> Loaded:
        """Return the module."""
        import torch
        from torch import nn

        model: nn.Module = torch.load(folder / _FILE, weights_only=False)  # a file of our own
        layers = sum(isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) for layer in model.modules())

        def predict(x: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return model(torch.from_numpy(x)).numpy()

        return Loaded(predict, layers, 0)
