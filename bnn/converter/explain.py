"""Which layers of a network become bits, and why others stay floats."""

from collections.abc import Sequence
from dataclasses import dataclass

from bnn_kernels.steps.matmul import Matmul
from bnn_kernels.steps.recurrent import Recurrent
from bnn_kernels.steps.weights import weight_bits
from torch import Tensor

from bnn.converter.graph.values import BinaryLayer, FloatLayer, LevelProduct, Levels, OwnStep, Value, live_values
from bnn.converter.lowering import Lowered
from bnn.converter.recognize.zeros import has_level_of_zero
from bnn.planes import Term

# An input takes few values if each occurs several times in the trial.
MOST_VALUES = 256
FEWEST_OF_EACH = 4
OF_ZERO = "two for the inputs, as a sign that may meet 0 is 0 there: sign_of_zero=1 takes torch.sign(0) as +1"


@dataclass(frozen=True)
class LayerExplanation:
    """One layer.

    weight_bits, input_bits: planes of a number, None for floats. reason: why it does not run on bits. note: what could
    make its bits fewer.
    """

    place: str
    weight_bits: int | None
    input_bits: int | None
    reason: str = ""
    missed: bool = False
    note: str = ""

    @property
    def on_bits(self) -> bool:
        """Whether it multiplies bits with bits."""
        return not self.reason


@dataclass(frozen=True)
class Explanation:
    """What becomes of the layers of a network, in the order in which they run."""

    layers: tuple[LayerExplanation, ...] = ()

    @property
    def missed(self) -> tuple[LayerExplanation, ...]:
        """Layers of few-valued weights and inputs that run in floats all the same."""
        return tuple(layer for layer in self.layers if layer.missed)

    @property
    def in_floats(self) -> tuple[LayerExplanation, ...]:
        """Layers that do not multiply bits with bits."""
        return tuple(layer for layer in self.layers if not layer.on_bits)

    def __str__(self) -> str:
        rows = [("layer", "weights", "inputs", "runs on")]
        for layer in self.layers:
            weights, inputs = (str(part) if part else "float" for part in (layer.weight_bits, layer.input_bits))
            bits = f"bits{', ' if layer.note else ''}{layer.note}"
            rows.append((layer.place, weights, inputs, bits if layer.on_bits else f"floats: {layer.reason}"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join("  ".join((*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3])) for row in rows)


def explanation(outputs: list[Value], items: Sequence[Lowered]) -> Explanation:
    """Return what becomes of the layers that outputs depend on. items: with what the network computed in the trial."""
    found = {
        value: real
        for item in items
        for value, real in zip(item.made, item.node.results, strict=True)
        if isinstance(value, Value)
    }
    layers = [_of_layer(value, found) for value in live_values(outputs)]
    return Explanation(tuple(layer for layer in layers if layer is not None))


def _of_layer(value: Value, found: dict[Value, Tensor]) -> LayerExplanation | None:
    if isinstance(value, BinaryLayer):
        levels = value.inputs[0]
        assert isinstance(levels, Levels)
        note = OF_ZERO if has_level_of_zero(levels) else ""
        return LayerExplanation(value.path, _bits(value.terms), levels.planes.bits, note=note)
    if isinstance(value, FloatLayer):
        (operand,) = value.inputs
        count = _values(found.get(operand))
        before = f", made by {operand.source}" if operand.source else ""
        if not value.terms:
            return LayerExplanation(value.owner, None, None, "its weights take many values")
        if count is None:
            return LayerExplanation(value.owner, _bits(value.terms), None, f"its inputs are floats{before}")
        reason = f"its inputs take {count} values{before}, which were not recognized as levels of one value"
        return LayerExplanation(value.owner, _bits(value.terms), None, reason, missed=True)
    if isinstance(value, LevelProduct):
        first, second = (x.planes.bits for x in value.inputs if isinstance(x, Levels))
        note = OF_ZERO if any(isinstance(x, Levels) and has_level_of_zero(x) for x in value.inputs) else ""
        return LayerExplanation(value.owner, first, second, note=note)
    if isinstance(value, OwnStep) and isinstance(value.fields, Matmul.Fields):
        return LayerExplanation(value.owner, None, None, "it multiplies two values that depend on the input")
    if isinstance(value, OwnStep) and isinstance(value.fields, Recurrent.Fields):
        reason = "its weights take many values" if value.fields.terms is None else "its hidden states are floats"
        bits = None if value.fields.terms is None else weight_bits(value.fields)
        return LayerExplanation(value.owner, bits, None, reason)
    return None


def _bits(terms: tuple[Term, ...]) -> int:
    return sum(len(term.multipliers) for term in terms if len(terms) == 1 or not bool(term.bits.all()))


def _values(x: Tensor | None) -> int | None:
    """Return how many values a tensor takes, None if they are many, or not known."""
    if x is None or x.numel() < FEWEST_OF_EACH:
        return None
    count = len(x.unique())
    return count if count <= min(MOST_VALUES, x.numel() // FEWEST_OF_EACH) else None
