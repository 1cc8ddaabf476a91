"""The parity report: a trained network and its packed form, layer by layer on the same inputs.

Both networks run freely, and their predictions are compared. Beside that each step of the packed one is fed what
PyTorch fed the same place, so a difference is shown where it arises: integer steps must give the same levels, float
steps may differ by rounding, and so may levels of floats, where a float lies within rounding of the threshold between
two of them. PyTorch itself is held to what it was trained with: each quantizer's planes to its forward.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import bnn_kernels as bk
import numpy as np
import torch
from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.tensor import BitTensor, unpack
from bnn_kernels.model.program import input_register
from torch import Tensor, nn

from bnn.converter.capture.exported import Model, as_module
from bnn.converter.capture.on_cpu import OnCpu
from bnn.converter.capture.record import Node, Output, capture, unfused
from bnn.converter.capture.sign_of_zero import sign_of_zero_is
from bnn.converter.convert import as_input, check_examples, explain, own_copy
from bnn.converter.errors import ConversionError
from bnn.converter.explain import Explanation
from bnn.converter.half_floats import round_weights
from bnn.converter.levels.planes_check import PlanesCheck
from bnn.converter.levels.table import as_one_term
from bnn.converter.parity.answers import Answers, outputs_of
from bnn.converter.parity.report import FreeRun, ParityReport, StepParity
from bnn.converter.sources import Reader, place_of, reader
from bnn.converter.tally import Tally

# A float within this share of the largest float of its map from a threshold may fall on either side of it.
ROUNDING = 1e-5
# Of all results of a recorded batch.
MOST_BYTES = 2**29
# Steps that only move numbers, or choose among them.
MOVES = ("reshape", "permute", "select", "concat", "max_pool")


class _Recorder:
    """Keeps what PyTorch computes at the places that the plan's sources name."""

    def __init__(self, network: nn.Module, sources: set[str]):
        self.network = network
        self.sources = sources
        # Of levels whose values a place computes: the source, and how levels are read from values.
        self.readers: dict[str, list[tuple[str, Reader]]] = {}
        for source in sources:
            if (read := reader(source)) is not None:
                self.readers.setdefault(place_of(source), []).append((source, read))
        self.values: dict[str, np.ndarray] = {}
        # Nodes whose results are read.
        self.read: set[int] = set()
        # Names of the places, and bytes of the results of an input that are read, as of the last run.
        self.places: set[str] = set()
        self.bytes_of_input = 0

    def run(self, inputs: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
        """Return the outputs, channels first; `values` holds the places'."""
        self.values, self.places = {}, set()
        captured = capture(self.network, inputs, self.read.__contains__)
        if not self.read.issuperset(read := self._read(captured.nodes)):
            self.read |= read
            captured = capture(self.network, inputs, self.read.__contains__)
        kept = 0
        for node in captured.nodes:
            self.places.add(node.place)
            kept += sum(x.numel() * x.element_size() for x in node.results if not x.is_meta)
            for i, x in enumerate(node.results):
                self._keep(node.place_of(i), x)
            if isinstance(node.target, nn.Module):
                self._keep_levels(node, node.target, len(inputs[0]))
        self.bytes_of_input = kept // len(inputs[0])
        return outputs_of(captured.returned)

    def _read(self, nodes: Sequence[Node]) -> set[int]:
        """Return the indices of the nodes whose results are at places of the plan, or are levels there."""
        found: set[int] = set()
        for node in nodes:
            places = {node.place_of(i) for i in range(len(node.results))}
            if not places.isdisjoint(self.sources) or not places.isdisjoint(self.readers):
                found.add(node.index)
            if any(f"{node.place} {what}" in self.sources for what in ("input", "levels")):
                found.update(operand.node.index for operand in node.operands)
        return found

    def _keep(self, place: str, result: Tensor) -> None:
        self.places.add(place)
        if place in self.sources:
            self.values[place] = result.numpy()
        for source, read in self.readers.get(place, ()):
            self.values[source] = read(result.numpy())

    def _keep_levels(self, node: Node, module: nn.Module, count: int) -> None:
        quantizers: dict[str, Any] = {"input": getattr(module, "input_quantizer", None), "levels": module}
        for what, quantizer in quantizers.items():
            source = f"{node.place} {what}"
            if source in self.sources and quantizer is not None:
                given = node.args[0]
                x = given.node.results[given.index] if isinstance(given, Output) else given
                levels = as_one_term(quantizer.planes(x)).levels().numpy()
                if len(levels) != count:  # tokens counted as images
                    levels = levels.reshape(count, -1, *levels.shape[1:])
                # Tokens are converted with their features as channels.
                self.values[source] = np.moveaxis(levels, -1, 1) if isinstance(module, nn.Linear) else levels


def _channels_first(value: Any, shape: tuple[int, ...], source: str) -> np.ndarray:
    """Return a register as PyTorch has it; ValueError if it is of another size."""
    found = unpack(value) if isinstance(value, BitTensor) else value
    if found.ndim == 4 and not isinstance(value, BitTensor):
        found = found.transpose(0, 3, 1, 2)
    if found.size != math.prod(shape):
        raise ValueError(
            f"the packed network was made of another model: at {source!r} it has {tuple(found.shape)}, PyTorch {shape}"
        )
    return found.reshape(shape)


def _as_register(value: Any, expected: np.ndarray) -> Any:
    """Return PyTorch's value in the form of a register: a BitTensor, or an array channels last."""
    if isinstance(value, BitTensor):
        return bk.pack_levels(expected.reshape(value.shape), value.multipliers, value.signed)
    if value.ndim == 4:
        n, h, w, c = value.shape
        expected = expected.reshape(n, c, h, w).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(expected, value.dtype)


class _Comparison:
    def __init__(self, packed: bk.PackedModel, recorded: set[str]):
        """recorded: those places that PyTorch computes."""
        self.packed = packed
        self.tallies: dict[str, Tally] = {}
        self.free: dict[str, Tally] = {}
        self.place: dict[str, tuple[int, str]] = {}
        self.made_by = {output: i for i, spec in enumerate(packed.steps) for output in spec.outputs}
        # Registers of which later steps get PyTorch's own numbers, or those numbers moved.
        self.same = {input_register(i) for i in range(len(packed.input_shapes))}
        for index, spec in enumerate(packed.steps):
            for output, source in zip(spec.outputs, spec.sources, strict=True):
                kept = source in recorded
                if kept or (spec.op in MOVES and self.same.issuperset(spec.inputs)):
                    self.same.add(output)
                if not kept:
                    continue
                what = packed.specs[output]
                planes = len(what.multipliers) if what.kind == "bits" else 1 if what.kind == "int" else 0
                exact = what.kind != "float" and not self._of_rounded_floats(index, output)
                self.place[output] = index, source
                self.tallies[output] = Tally(spec.op, source, exact, planes)
                self.free[output] = Tally(spec.op, source, exact, planes)

    def _of_rounded_floats(self, index: int, output: str) -> bool:
        """Whether bits are levels of floats that are not PyTorch's own."""
        spec = self.packed.steps[index]
        if spec.op == "pool_bits":
            (given,) = spec.inputs
            return given not in self.place and self._of_rounded_floats(self.made_by[given], given)
        if spec.op == "pack":
            return not self.same.issuperset(spec.inputs)
        rounded = "bounds" in spec.tensors or ("levels" in spec.attrs and not spec.attrs.get("exact", False))
        return self.packed.specs[output].kind == "bits" and rounded

    def run(self, inputs: Sequence[np.ndarray], values: dict[str, np.ndarray], free: bool) -> np.ndarray:
        """Run the packed network and compare each place; unless `free`, later steps get PyTorch's values.

        Returns bool (N,): in which inputs levels differed.
        """
        tallies = self.free if free else self.tallies
        registers = self.packed.enter(*inputs)
        flipped = np.zeros(len(inputs[0]), bool)

        def compare(register: str, value: Any) -> Any:
            registers[register] = value
            if register in self.place:
                index, source = self.place[register]
                expected = values[source]
                found = _channels_first(value, expected.shape, source)
                tallies[register].add(found, expected, lambda: self._explained(index, registers, found, expected))
                if self.packed.specs[register].kind != "float":
                    flipped[:] |= (found != expected).reshape(len(found), -1).any(1)
                if not free:
                    registers[register] = _as_register(value, expected)
            return registers[register]

        self.packed.trace(*inputs, replace=compare)
        return flipped

    def _explained(self, index: int, registers: dict[str, Any], found: np.ndarray, expected: np.ndarray) -> int:
        """Return how many different levels are those of floats within rounding of the thresholds between."""
        bits = self._nearby(index, registers)
        if bits is None:
            return 0
        rank = _ranks(self.packed.steps[index])
        low, high = (rank(_channels_first(part, expected.shape, "")) for part in bits)
        wanted = rank(expected)
        inside = (np.minimum(low, high) <= wanted) & (wanted <= np.maximum(low, high))
        return int(np.count_nonzero(inside & (found != expected)))

    def _nearby(self, index: int, registers: dict[str, Any]) -> tuple[Any, Any] | None:
        """Return a step's levels if its floats were lower, and higher, within rounding; pooled, if it pools them."""
        step = self.packed.steps[index]
        if step.op != "pool_bits":
            return self.packed.nearby(index, ROUNDING, *[registers[name] for name in step.inputs])
        before = self._nearby(self.made_by[step.inputs[0]], registers)
        if before is None:
            return None
        lower, higher = (self.packed.run_step(index, bits) for bits in before)
        return lower, higher

    def rows(self, tallies: dict[str, Tally]) -> tuple[StepParity, ...]:
        return tuple(StepParity.of(tally) for tally in tallies.values() if tally.elements)


def _ranks(step: bk.StepSpec) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that maps a step's levels to their place in ascending order of values; -1 for no level."""
    if step.op != "pack" or "codes" not in step.tensors:
        return lambda levels: levels
    of_code = level_of_code(tuple(step.attrs["multipliers"]), step.attrs["signed"])
    by_rank = of_code[step.tensors["codes"]]
    order = np.argsort(by_rank)

    def rank(levels: np.ndarray) -> np.ndarray:
        at = order[np.searchsorted(by_rank, levels, sorter=order).clip(max=len(order) - 1)]
        return np.where(by_rank[at] == levels, at, -1)

    return rank


def _inputs_of(inputs: Tensor | Sequence[Tensor], packed: bk.PackedModel) -> list[Tensor]:
    """Return the inputs on the CPU as a packed network has them; ValueError or TypeError on what is none."""
    given: list[Tensor] = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    counts = sorted({len(x) if isinstance(x, Tensor) and x.ndim else 0 for x in given})
    if counts in ([], [0]):
        raise ValueError("parity needs at least one input")
    if len(counts) > 1:
        raise ValueError(f"the inputs must have the same length, got {counts}")
    check_examples(given)
    shapes = [tuple(x.shape[1:]) for x in given]
    if shapes != packed.input_shapes:
        raise ValueError(
            f"the packed network takes inputs of shape (N, *s) for s in {packed.input_shapes}, got {shapes}"
        )
    for i, (x, dtype) in enumerate(zip(given, packed.input_dtypes, strict=True)):
        if (x.dtype == torch.uint8) != (dtype == "uint8"):
            raise TypeError(f"input {i} is {x.dtype}, but the packed network was made for {dtype} examples")
    return [as_input(x) for x in given]


def _check_places(sources: set[str], places: set[str]) -> None:
    """ValueError if the packed network names places that are none of the network's."""
    for source in sources:
        place = place_of(source).removesuffix(" input").removesuffix(" levels")
        if place not in places:
            raise ValueError(
                f"the packed network was made of another model: it has a step of {place!r}, which this one has not"
            )


def _explanation(model: nn.Module, examples: Sequence[Tensor], sign_of_zero: int) -> Explanation:
    """Return which layers run on bits; nothing if the model, which is not what was converted, cannot be converted."""
    try:
        return explain(model, examples, sign_of_zero)
    except ConversionError:
        return Explanation()


def check_parity(
    model: Model, packed: bk.PackedModel, inputs: Tensor | Sequence[Tensor], batch_size: int = 256
) -> ParityReport:
    """Run inputs through both networks and compare; the model is in evaluation mode, and is not changed.

    inputs: float (N, C, H, W), (N, C, L) or (N, K), uint8 pixels where the packed network takes those, or int32 or
    int64 (N, T) for embeddings, or a tuple of such for several inputs. The model is held to what it computes in float32
    on a CPU, as `convert` is.

    ValueError if some module is in train mode, if there are no inputs, or if the packed network was made of a model of
    other modules; of one with other weights, the report shows it.
    """
    model = as_module(model)
    for path, module in model.named_modules():
        if module.training:
            raise ValueError(f"{path or 'the model'} is in train mode: call model.eval() first")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    given = _inputs_of(inputs, packed)
    twin = own_copy(model).to("cpu", torch.float32)
    round_weights(twin, packed.info.get("float_storage", "float32"))
    sources = {source for spec in packed.steps for source in spec.sources if source}
    recorder = _Recorder(twin, sources)
    sign_of_zero = packed.info.get("sign_of_zero", 0)
    with torch.no_grad(), sign_of_zero_is(sign_of_zero):
        recorder.run([x[:2] for x in given])
    _check_places(sources, recorder.places)
    batch_size = max(1, min(batch_size, MOST_BYTES // max(1, recorder.bytes_of_input)))
    quantizers = PlanesCheck(twin)
    graph = Tally("graph", "the recorded run against the model", exact=False)
    comparison: _Comparison | None = None
    answers = Answers()
    signs = zeros = 0
    for start in range(0, len(given[0]), batch_size):
        part = [x[start : start + batch_size] for x in given]
        arrays = [x.numpy() for x in part]
        with torch.no_grad(), OnCpu(), unfused(), quantizers, sign_of_zero_is(sign_of_zero) as met:
            expected = outputs_of(twin(*[x.clone() for x in part]))  # some networks write to their input
        signs, zeros = signs + met.signs, zeros + met.zeros
        with sign_of_zero_is(sign_of_zero):
            recorded = recorder.run(part)
        for ours, theirs in zip(recorded, expected, strict=True):
            graph.add(ours, theirs)
        if comparison is None:
            comparison = _Comparison(packed, set(recorder.values))
        comparison.run(arrays, recorder.values, free=False)
        comparison.run(arrays, recorder.values, free=True)
        # As a user calls it: the first calls on a number of inputs run step by step, later ones are played back.
        calls = [outputs_of(packed(*arrays)) for _ in range(3 if start == 0 else 1)]
        found = calls[-1]
        if not all(np.array_equal(a, b, equal_nan=True) for c in calls for a, b in zip(c, found, strict=True)):
            raise RuntimeError("the packed network answers differently when it is called again")
        answers.add(found, expected)
    assert comparison is not None
    rows = comparison.rows(comparison.tallies)
    return ParityReport(
        inputs=len(given[0]),
        steps=rows,
        free=FreeRun(comparison.rows(comparison.free)),
        explain=functools.partial(_explanation, model, [x[:1] for x in given], sign_of_zero),
        signs=signs,
        signs_of_zero=zeros,
        network=tuple(map(StepParity.of, (*quantizers.used(), graph))),
        **answers.result(),
    )
