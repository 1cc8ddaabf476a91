"""The parity report: a trained network and its packed form, layer by layer on the same inputs.

Both networks run freely, and their predictions are compared. Beside that each step of the packed one is fed what
PyTorch fed the same place, so a difference is shown where it arises: integer steps must give the same levels, float
steps may differ by rounding, and so may signs of floats, where a float lies within rounding of its threshold.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import bnn_kernels as bk
import numpy as np
import torch
from bnn_kernels.bit_tensor import BitTensor, unpack
from bnn_kernels.pooling import max_pool
from torch import Tensor, fx, nn

from bnn.converter.builder import IN_STEPS
from bnn.converter.convert import check_examples
from bnn.converter.level_table import as_one_term
from bnn.converter.parity_report import FreeRun, ParityReport, StepParity
from bnn.converter.trace import Traced, trace

# A float within this share of the largest float of its map from a threshold may fall on either side of it.
ROUNDING = 1e-5


class _Recorder:
    """Keeps what PyTorch computes at the places that the plan's sources name."""

    def __init__(self, traced: Traced, sources: set[str]):
        self.traced = traced
        self.sources = sources
        # Of levels whose values a place computes: the source, and what a level of 1 stands for.
        self.scales: dict[str, list[tuple[str, float]]] = {}
        for source in sources:
            place, steps, scale = source.partition(IN_STEPS)
            if steps:
                self.scales.setdefault(place, []).append((source, float(scale)))
        self.modules = dict(traced.module.named_modules())
        self.values: dict[str, np.ndarray] = {}

    def run(self, inputs: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
        """Return the outputs, channels first; `values` holds the places'."""
        self.values = {}
        with torch.no_grad():
            outputs = self.traced.run(inputs, self._watch)
        return tuple(y.numpy() for y in (outputs if isinstance(outputs, tuple | list) else (outputs,)))

    def _watch(self, node: fx.Node, args: Any, result: Any) -> None:
        place = self.traced.places[node]
        if place in self.sources and isinstance(result, Tensor):
            # A copy: a later module may work in place.
            self.values[place] = result.numpy().copy()
        for source, scale in self.scales.get(place, ()):
            self.values[source] = (result / scale).round().to(torch.int32).numpy()
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            for source, quantizer in (
                (f"{place} input", getattr(module, "input_quantizer", None)),
                (f"{place} levels", module),
            ):
                if source in self.sources and quantizer is not None:
                    levels = as_one_term(quantizer.planes(args[0])).levels().numpy()
                    # Tokens are converted with their features as channels.
                    self.values[source] = np.moveaxis(levels, -1, 1) if isinstance(module, nn.Linear) else levels


class _Tally:
    """Sums up the comparisons of one output of one step."""

    def __init__(self, step: str, source: str, exact: bool):
        self.step, self.source, self.exact = step, source, exact
        self.elements = self.different = self.explained = 0
        self.largest = self.largest_value = 0.0

    def add(self, found: np.ndarray, expected: np.ndarray, margins: Callable[[], np.ndarray | None]) -> None:
        difference = np.abs(found.astype(np.float64) - expected)
        wrong = int(np.count_nonzero(difference))
        self.elements += difference.size
        self.different += wrong
        self.largest = max(self.largest, float(difference.max(initial=0)))
        self.largest_value = max(self.largest_value, float(np.abs(expected).max(initial=0)))
        self.explained += _explained(difference, margins()) if wrong else 0

    def row(self, is_levels: bool) -> StepParity:
        relative = self.largest / self.largest_value if self.largest_value else self.largest
        return StepParity(
            self.step, self.source, self.exact, is_levels, self.elements, self.different, self.explained,
            self.largest, relative,
        )  # fmt: skip


def _explained(difference: np.ndarray, margins: np.ndarray | None) -> int:
    """Return how many different levels stem from a float within rounding of its threshold."""
    if margins is None or margins.size != difference.size:
        return 0
    if difference.ndim == 4:
        difference = difference.transpose(0, 2, 3, 1)
    return int(np.count_nonzero((difference.reshape(margins.shape) != 0) & (margins <= ROUNDING)))


def _channels_first(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return a register as PyTorch has it."""
    found = unpack(value) if isinstance(value, BitTensor) else value
    if found.ndim == 4 and not isinstance(value, BitTensor):
        found = found.transpose(0, 3, 1, 2)
    return found.reshape(shape)


def _as_register(value: Any, expected: np.ndarray) -> Any:
    """Return PyTorch's value in the form of a register: a BitTensor, or an array channels last."""
    if isinstance(value, BitTensor):
        return bk.pack_levels(expected.reshape(value.shape), value.multipliers, value.signed)
    if value.ndim == 4:
        n, h, w, c = value.shape
        expected = expected.reshape(n, c, h, w).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(expected)


def _as_tuple(found: Any) -> tuple[np.ndarray, ...]:
    return found if isinstance(found, tuple) else (found,)


class _Comparison:
    def __init__(self, packed: bk.PackedModel):
        self.packed = packed
        self.tallies: dict[str, _Tally] = {}
        self.free: dict[str, _Tally] = {}
        self.place: dict[str, tuple[int, str]] = {}
        self.made_by = {output: i for i, spec in enumerate(packed.steps) for output in spec.outputs}
        for index, spec in enumerate(packed.steps):
            fed_by_floats = any(packed.specs[name].kind == "float" for name in spec.inputs)
            for output, source in zip(spec.outputs, spec.sources, strict=True):
                kind = packed.specs[output].kind
                # Signs out of a pass are signs of floats; a packing step is fed the very floats of PyTorch.
                signs_of_floats = kind == "bits" and spec.attrs.get("output", "float") == "float" and spec.op != "pack"
                exact = kind != "float" and not (signs_of_floats and (fed_by_floats or spec.op.startswith("binary")))
                if source:
                    self.place[output] = index, source
                    self.tallies[output] = _Tally(spec.op, source, exact)
                    self.free[output] = _Tally(spec.op, source, exact)
        self.sources = {source for _, source in self.place.values()}

    def run(self, inputs: Sequence[np.ndarray], values: dict[str, np.ndarray], free: bool) -> None:
        """Run the packed network and compare each place; unless `free`, later steps get PyTorch's values."""
        tallies = self.free if free else self.tallies
        registers = self.packed.enter(*inputs)

        def compare(register: str, value: Any) -> Any:
            registers[register] = value
            index, source = self.place.get(register, (0, ""))
            if source in values:
                expected = values[source]

                margins = functools.partial(self._margins, index, registers)
                tallies[register].add(_channels_first(value, expected.shape), expected, margins)
                if not free:
                    registers[register] = _as_register(value, expected)
            return registers[register]

        self.packed.trace(*inputs, replace=compare)

    def _margins(self, index: int, registers: dict[str, Any]) -> np.ndarray | None:
        """Return the margins of a step's levels; behind a pooling, the smallest of each window."""
        step = self.packed.steps[index]
        if step.op != "pool_bits":
            return self.packed.margins(index, *[registers[name] for name in step.inputs])
        before = self._margins(self.made_by[step.inputs[0]], registers)
        if before is None:
            return None
        geometry = (*step.attrs["kernel"], *step.attrs["stride"], *step.attrs["padding"])
        return -max_pool(-before.astype(np.float32), geometry)

    def rows(self, tallies: dict[str, _Tally]) -> tuple[StepParity, ...]:
        return tuple(
            tally.row(self.packed.specs[register].kind != "float")
            for register, tally in tallies.items()
            if tally.elements
        )


def check_parity(
    model: nn.Module, packed: bk.PackedModel, inputs: Tensor | Sequence[Tensor], batch_size: int = 256
) -> ParityReport:
    """Run float inputs through both networks and compare; the model is in evaluation mode.

    inputs: float (N, C, H, W), (N, C, L) or (N, K), or a tuple of such for several inputs. ValueError if the model is
    in train mode or there are no inputs.
    """
    if model.training:
        raise ValueError("the model is in train mode: call model.eval() first")
    given: list[Tensor] = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    count = len(given[0])
    if count == 0:
        raise ValueError("parity needs at least one input")
    check_examples(given)
    comparison = _Comparison(packed)
    recorder = _Recorder(trace(model), comparison.sources)
    agree = output_difference = 0.0
    for start in range(0, count, batch_size):
        part = [x[start : start + batch_size] for x in given]
        arrays = [x.numpy() for x in part]
        expected = recorder.run(part)
        comparison.run(arrays, recorder.values, free=False)
        comparison.run(arrays, recorder.values, free=True)
        # As a user calls it: the first calls on a number of inputs run step by step, later ones are played back.
        calls = [_as_tuple(packed(*arrays)) for _ in range(3 if start == 0 else 1)]
        found = calls[-1]
        if not all(np.array_equal(a, b, equal_nan=True) for c in calls for a, b in zip(c, found, strict=True)):
            raise RuntimeError("the packed network answers differently when it is called again")
        # A network that ends in a map predicts at every pixel; one with several outputs predicts with the first.
        same = found[0].argmax(1) == expected[0].argmax(1)
        agree += float(same.reshape(len(same), -1).mean(1).sum())
        for ours, theirs in zip(found, expected, strict=True):
            output_difference = max(output_difference, float(np.abs(ours - theirs).max(initial=0)))
    free = FreeRun(comparison.rows(comparison.free))
    return ParityReport(count, comparison.rows(comparison.tallies), free, agree / count, output_difference)
