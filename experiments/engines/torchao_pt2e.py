"""torchao's PT2E quantization with its quantizer for x86, compiled by Inductor (extra `oracles`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.engines.base import Loaded, silent

if TYPE_CHECKING:  # a packed network runs without torch
    from torch import Tensor, nn

_FILE = "model.pt2"
# What Inductor counts of the layers whose weights it lays out for products of bytes.
_COUNTERS = ("qconv_weight_prepack_matcher_count", "qlinear_weight_prepack_matcher_count")


class TorchaoPt2e:
    """Eight bits after training; needs a C++ compiler, and half a minute or more to load a network."""

    name = "torchao int8"
    libraries: tuple[str, ...] = ("torchao",)
    extra = "oracles"

    def build(self, model: nn.Module, example: Tensor, batches: Sequence[Tensor], folder: Path) -> None:
        """Export the network for any batch size, quantize it and save the exported program."""
        import torch

        with silent():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

            quantizer = x86.X86InductorQuantizer()
            quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
            prepared = prepare_pt2e(exported(model, example).module(), quantizer)
            with torch.no_grad():
                for batch in batches:
                    prepared(batch)
            torch.export.save(exported(convert_pt2e(prepared), example), folder / _FILE)

    def load(self, folder: Path, threads: int, batch: int | None = None, counted: bool = True) -> Loaded:
        """Compile the network for the batch size and for the threads that PyTorch has now.

        Without a batch size it is compiled for single inputs, one after the other.
        """
        import torch

        with silent(), torch.no_grad():
            import torch._inductor.config as inductor
            from torch._dynamo.utils import counters

            program = torch.export.load(folder / _FILE)
            kinds = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
            layers = sum(kind.startswith(("aten.conv", "aten.linear")) for kind in kinds)
            (example,) = program.example_inputs[0] if program.example_inputs else (None,)
            assert isinstance(example, torch.Tensor)
            size = batch or 1
            torch._dynamo.reset()  # beyond some compilations of one module it would go on without compiling
            before = sum(counters["inductor"][name] for name in _COUNTERS)
            with inductor.patch(freezing=True):
                network: Any = torch.compile(program.module(), dynamic=False)
                network(example[:1].repeat(size, *(1 for _ in example.shape[1:])))
            integer = sum(counters["inductor"][name] for name in _COUNTERS) - before

        def predict(x: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                found = [network(part) for part in torch.from_numpy(x).split(size)]
            return torch.cat(found).numpy() if len(found) > 1 else found[0].numpy()

        return Loaded(predict, layers, integer)


class TorchaoTrained(TorchaoPt2e):
    """Eight bits in which a network was trained; loads as its base does."""

    name = "torchao int8 trained"

    def build(self, model: nn.Module, example: Tensor, batches: Sequence[Tensor], folder: Path) -> None:
        """Convert a trained `experiments.engines.torchao_qat.Prepared`, whose ranges are learned, and save it.

        TypeError for any other network.
        """
        import torch

        from experiments.engines.torchao_qat import Prepared

        if not isinstance(model, Prepared):
            raise TypeError(f"{self.name} takes a network that was trained as a Prepared, got {type(model).__name__}")
        with silent():
            torch.export.save(exported(model.converted(), example), folder / _FILE)


def exported(model: Any, example: Tensor) -> Any:
    """Return the exported program of a network for any batch size."""
    import torch

    size = torch.export.Dim("n", min=1, max=2**16)
    return torch.export.export(model, (example,), dynamic_shapes=({0: size},))
