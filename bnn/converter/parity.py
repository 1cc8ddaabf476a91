"""The parity report: a trained network and its packed form, layer by layer on the same inputs.

Each step is fed what PyTorch fed the same place, so a difference is shown where it arises. Integer steps must give
the same levels; float steps may differ by rounding. Beside that both networks run freely, and their predictions are
compared.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

import bnn_kernels as bk
import numpy as np
import torch
from bnn_kernels.bit_tensor import BitTensor, unpack
from torch import Tensor, nn

from bnn.layers.base import QuantLayer

# float32 sums of some thousand products in two orders.
FLOAT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class StepParity:
    """One step against PyTorch: `exact` steps give integers or levels from integers, others floats."""

    step: str
    source: str
    exact: bool
    elements: int
    different: int
    max_difference: float
    relative_difference: float

    @property
    def ok(self) -> bool:
        """No different element of an exact step; a float step within FLOAT_TOLERANCE of its largest value."""
        return self.different == 0 if self.exact else self.relative_difference <= FLOAT_TOLERANCE


@dataclass(frozen=True)
class ParityReport:
    """Parity of a network on `inputs` inputs.

    steps: each fed with PyTorch's values. agreement: share of equal predictions (argmax over axis 1) and
    max_difference: largest difference of the outputs, when both run freely.
    """

    inputs: int
    steps: tuple[StepParity, ...]
    agreement: float
    max_difference: float

    @property
    def first_difference(self) -> StepParity | None:
        """The first step that is not ok, or None."""
        return next((step for step in self.steps if not step.ok), None)

    @property
    def ok(self) -> bool:
        """All steps are ok and all predictions agree."""
        return self.first_difference is None and self.agreement == 1

    def to_json(self) -> str:
        """Return the report as JSON."""
        rows = [{**asdict(step), "ok": step.ok} for step in self.steps]
        first = self.first_difference
        return json.dumps(
            {
                "inputs": self.inputs,
                "ok": self.ok,
                "prediction_agreement": self.agreement,
                "max_output_difference": self.max_difference,
                "first_difference": None if first is None else f"{first.step} ({first.source})",
                "steps": rows,
            },
            indent=2,
        )

    def __str__(self) -> str:
        rows = [("step", "checked at", "kind", "elements", "different", "max diff", "relative", "")]
        for s in self.steps:
            counts = (f"{s.elements:,}", f"{s.different:,}", f"{s.max_difference:.2g}", f"{s.relative_difference:.2g}")
            rows.append((s.step, s.source, "exact" if s.exact else "float", *counts, "ok" if s.ok else "DIFFERS"))
        widths = [max(len(row[i]) for row in rows) for i in range(8)]
        lines = [
            "  ".join(c.rjust(w) if 2 < i < 7 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        lines.append(
            f"{self.inputs} inputs: predictions agree on {self.agreement:.2%}, "
            f"largest output difference {self.max_difference:.2g}: {'parity holds' if self.ok else 'PARITY FAILS'}"
        )
        return "\n".join(lines)


class _Recorder:
    """Keeps what PyTorch computes at the places that the plan's sources name."""

    def __init__(self, model: nn.Module, sources: set[str]):
        self.values: dict[str, Tensor] = {}
        self.hooks = []
        modules = dict(model.named_modules())
        for source in sources:
            path = source.removesuffix(" input")
            if path not in modules:
                continue
            if source != path:
                self.hooks.append(modules[path].register_forward_pre_hook(self._levels(source)))
            else:
                self.hooks.append(modules[path].register_forward_hook(self._output(source)))

    def _levels(self, source: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(module, QuantLayer)
            self.values[source] = module.input_quantizer.planes(inputs[0]).terms[0].levels()

        return hook

    def _output(self, source: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.values[source] = output

        return hook

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


def _as_register(value: Any, expected: np.ndarray) -> Any:
    """Return PyTorch's value (channels first) in the form of a register: a BitTensor, or an array channels last."""
    if isinstance(value, BitTensor):
        return bk.pack_levels(expected.reshape(value.shape), value.multipliers, value.signed)
    return np.ascontiguousarray(expected.transpose(0, 2, 3, 1)) if expected.ndim == 4 else expected


def check_parity(model: nn.Module, packed: bk.PackedModel, inputs: Tensor, batch_size: int = 256) -> ParityReport:
    """Run float inputs (N, C, H, W) or (N, K) through both networks and compare; the model is in evaluation mode.

    ValueError if the model is in train mode or there are no inputs.
    """
    if model.training:
        raise ValueError("the model is in train mode: call model.eval() first")
    if len(inputs) == 0:
        raise ValueError("parity needs at least one input")
    counts = np.zeros((len(packed.steps), 2), np.int64)
    largest = np.zeros((len(packed.steps), 3))
    compared = [False] * len(packed.steps)
    exact = [False] * len(packed.steps)
    agree = output_difference = 0.0
    # A step is checked at the last step of its source: a fused layer and its pooling are one place.
    last = {spec.source: index for index, spec in enumerate(packed.steps)}
    for start in range(0, len(inputs), batch_size):
        x = inputs[start : start + batch_size]
        recorder = _Recorder(model, set(last))
        try:
            with torch.no_grad():
                expected_output = model(x).numpy()
        finally:
            recorder.close()

        def compare(index: int, value: Any, values: dict[str, Tensor] = recorder.values) -> Any:
            source = packed.steps[index].source
            if last[source] != index or source not in values:
                return value
            expected = values[source].numpy()
            is_bits = isinstance(value, BitTensor)
            found = unpack(value) if is_bits else value
            if found.ndim == 4 and not is_bits:
                found = found.transpose(0, 3, 1, 2)
            found = found.reshape(expected.shape)
            difference = np.abs(found.astype(np.float64) - expected)
            compared[index] = True
            op = packed.steps[index].op
            exact[index] = is_bits or op.startswith("binary")
            if op.startswith("binary") and packed.steps[index].attrs.get("input_scale"):
                exact[index] = False
            counts[index] += (difference.size, np.count_nonzero(difference))
            largest[index, 0] = max(largest[index, 0], difference.max(initial=0))
            largest[index, 1] = max(largest[index, 1], np.abs(expected).max(initial=0))
            return _as_register(value, expected)

        packed.trace(x.numpy(), compare)
        found = packed(x.numpy())
        # A network that ends in a map predicts at every pixel.
        agree += float((found.argmax(1) == expected_output.argmax(1)).reshape(len(x), -1).mean(1).sum())
        output_difference = max(output_difference, float(np.abs(found - expected_output).max()))
    rows = [
        StepParity(
            spec.op,
            spec.source,
            exact[i],
            int(counts[i, 0]),
            int(counts[i, 1]),
            float(largest[i, 0]),
            float(largest[i, 0] / largest[i, 1]) if largest[i, 1] else float(largest[i, 0]),
        )
        for i, spec in enumerate(packed.steps)
        if compared[i]
    ]
    return ParityReport(len(inputs), tuple(rows), agree / len(inputs), output_difference)
