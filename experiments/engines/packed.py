"""Our kernels: a network converted into a packed file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.engines.base import Loaded

if TYPE_CHECKING:  # a packed network runs without torch
    from torch import Tensor, nn

_FILE = "packed.safetensors"


class Packed:
    """Runs a network at the bits that its quantizers have; float_storage: how weights that stay float are stored."""

    libraries: tuple[str, ...] = ()
    extra = ""

    def __init__(self, float_storage: Any) -> None:
        self.float_storage = float_storage
        self.name = "packed" if float_storage == "float32" else f"packed {float_storage}"

    def build(self, model: nn.Module, example: Tensor, batches: Sequence[Tensor], folder: Path) -> None:
        """Convert the network; ConversionError if that cannot be done."""
        import bnn

        bnn.convert(model, example, float_storage=self.float_storage).save(folder / _FILE)

    def load(self, folder: Path, threads: int, batch: int | None = None, counted: bool = True) -> Loaded:
        """Return the packed network; a layer counts as one on integers if neither its weights nor inputs are floats."""
        import bnn_kernels as bk

        packed = bk.load(folder / _FILE)
        layers = [cost.precision for cost in packed.costs() if cost.macs]
        return Loaded(packed, len(layers), sum("32" not in precision for precision in layers))
