"""PyTorch as it is, layer by layer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from experiments.engines.base import Loaded

_FILE = "model.pt"


class PyTorch:
    """Runs a network in FP32."""

    name = "pytorch"
    libraries: tuple[str, ...] = ()
    extra = ""

    def build(self, model: nn.Module, example: Tensor, batches: Sequence[Tensor], folder: Path) -> None:
        """Save the whole module."""
        torch.save(model, folder / _FILE)

    def load(self, folder: Path, threads: int, batch: int | None = None) -> Loaded:
        """Return the module."""
        model: nn.Module = torch.load(folder / _FILE, weights_only=False)  # a file of our own
        layers = sum(isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) for layer in model.modules())

        def predict(x: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return model(torch.from_numpy(x)).numpy()

        return Loaded(predict, layers, 0)
