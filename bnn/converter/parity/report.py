"""What the parity report says, as a table and as JSON."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from bnn.converter.explain import Explanation
from bnn.converter.tally import Tally

# float32 sums of some thousand products in two orders.
FLOAT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class StepParity:
    """One output of one step against PyTorch.

    exact: integers, or levels from integers or from PyTorch's own floats. levels: integers or levels, else floats.
    explained: different levels of floats within rounding of the threshold between both levels. planes: bits of a level.
    """

    step: str
    source: str
    exact: bool
    levels: bool
    elements: int
    different: int
    explained: int
    max_difference: float
    relative_difference: float
    planes: int = 0

    @classmethod
    def of(cls, tally: Tally) -> "StepParity":
        """Return the row of what a tally has summed up."""
        relative = tally.largest / tally.largest_value if tally.largest_value else tally.largest
        return cls(
            tally.step, tally.source, tally.exact, tally.planes > 0, tally.elements, tally.different, tally.explained,
            tally.largest, relative, tally.planes,
        )  # fmt: skip

    @property
    def ok(self) -> bool:
        """No different element of an exact step; levels of floats only within rounding; floats within tolerance."""
        if self.exact:
            return self.different == 0
        return self.different == self.explained if self.levels else self.relative_difference <= FLOAT_TOLERANCE

    @property
    def kind(self) -> str:
        """What is compared: "exact", "signs" or "levels" of floats, or "float"."""
        if self.exact or not self.levels:
            return "exact" if self.exact else "float"
        return "signs" if self.planes == 1 else "levels"

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        sizes = {name: _number(getattr(self, name)) for name in ("max_difference", "relative_difference")}
        return {**asdict(self), **sizes, "ok": self.ok}


@dataclass(frozen=True)
class FreeRun:
    """The steps when nothing is fed from PyTorch: a sign that falls on the other side changes all that follows."""

    steps: tuple[StepParity, ...]

    @property
    def first_difference(self) -> StepParity | None:
        """The first step with different levels, or None."""
        return next((step for step in self.steps if step.levels and step.different), None)

    @property
    def different_levels(self) -> int:
        """Different levels over all steps."""
        return sum(step.different for step in self.steps if step.levels)


@dataclass(frozen=True)
class ParityReport:
    """Parity of a network on `inputs` inputs.

    steps: each fed with PyTorch's values. free: the same steps when both run freely. network: PyTorch against itself,
    the planes of each quantizer against its forward and the recorded run against the model.

    agreement: share of equal predictions (argmax over axis 1 of the first output) when both run freely; None where
    there are no classes to choose from. undecided: share of others, for which both networks have both classes within
    rounding of each other. classes: how many different ones PyTorch predicts. max_difference: the largest of all
    outputs. finite: whether PyTorch's outputs hold no NaN. signs, signs_of_zero: of a network that was converted with
    sign_of_zero=1, how many signs PyTorch takes, and how many of them of a 0, which both networks count as +1. explain:
    tells which layers run on bits.
    """

    inputs: int
    steps: tuple[StepParity, ...]
    free: FreeRun
    agreement: float | None
    max_difference: float
    network: tuple[StepParity, ...] = ()
    undecided: float = 0.0
    classes: int = 0
    finite: bool = True
    signs: int = 0
    signs_of_zero: int = 0
    explain: Callable[[], Explanation] = field(default=Explanation, repr=False, compare=False)

    @cached_property
    def explanation(self) -> Explanation:
        """Which layers run on bits, and why others run in floats; lowers the network again, when it is first asked."""
        return self.explain()

    @property
    def first_difference(self) -> StepParity | None:
        """The first quantizer or step that is not ok, or None."""
        return next((row for row in (*self.network, *self.steps) if not row.ok), None)

    @property
    def predictions_agree(self) -> bool:
        """Whether all predictions are the same, those aside that rounding decides."""
        return self.agreement is None or self.agreement + self.undecided > 1 - 1e-12

    @property
    def ok(self) -> bool:
        """All rows are ok, all predictions agree, and there is something to agree on."""
        return bool(self.steps) and self.first_difference is None and self.predictions_agree and self.finite

    @property
    def largest_relative_difference(self) -> float:
        """Of all float steps."""
        return max((step.relative_difference for step in self.steps if not step.levels), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        first, free = self.first_difference, self.free.first_difference
        return {
            "inputs": self.inputs,
            "ok": self.ok,
            "prediction_agreement": self.agreement,
            "predictions_undecided": self.undecided,
            "predicted_classes": self.classes,
            "finite": self.finite,
            "signs": self.signs,
            "signs_of_zero": self.signs_of_zero,
            "max_output_difference": _number(self.max_difference),
            "largest_relative_difference": _number(self.largest_relative_difference),
            "first_difference": None if first is None else f"{first.step} ({first.source})",
            "free_run": {
                "different_levels": self.free.different_levels,
                "first_difference": None if free is None else free.to_dict(),
            },
            "network": [row.to_dict() for row in self.network],
            "steps": [step.to_dict() for step in self.steps],
            "layers": [{**asdict(layer), "on_bits": layer.on_bits} for layer in self.explanation.layers],
        }

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def _conclusion(self) -> str:
        if self.agreement is None:
            predictions = "no classes to predict"
        else:
            # Not 100.00 % if a single one differs.
            agree = f"{self.agreement if self.agreement == 1 else min(self.agreement, 0.9999):.2%}"
            near = f", {self.undecided:.2%} lie within rounding of another class" if self.undecided else ""
            one = " (PyTorch predicts one class for all)" if self.classes == 1 and self.inputs > 1 else ""
            predictions = f"predictions agree on {agree}{near}{one}"
        why = ""
        if not self.finite:
            why = ": PyTorch's outputs hold NaN"
        elif not self.steps:
            why = ": no step could be compared"
        verdict = "parity holds" if self.ok else f"PARITY FAILS{why}"
        return f"{self.inputs} inputs: {predictions}, largest output difference {self.max_difference:.2g}: {verdict}"

    def __str__(self) -> str:
        rows = [("step", "checked at", "kind", "elements", "different", "rounding", "max diff", "relative", "")]
        for s in (*(row for row in self.network if not row.ok), *self.steps):
            rounding = f"{s.explained:,}" if s.kind in ("signs", "levels") else ""
            counts = (f"{s.elements:,}", f"{s.different:,}", rounding)
            sizes = (f"{s.max_difference:.2g}", f"{s.relative_difference:.2g}")
            rows.append((s.step, s.source, s.kind, *counts, *sizes, "ok" if s.ok else "DIFFERS"))
        widths = [max(len(row[i]) for row in rows) for i in range(9)]
        lines = [
            "  ".join(c.rjust(w) if 2 < i < 8 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        free = self.free.first_difference
        if free is not None:
            lines.append(
                f"running freely {self.free.different_levels:,} levels differ, first {free.different:,} at "
                f"{free.source}, {free.explained:,} of floats within rounding of their threshold"
            )
        for layer in self.explanation.in_floats:
            lines.append(f"{layer.place} runs in floats: {layer.reason}")
        if self.signs:
            lines.append(f"{self.signs_of_zero:,} of {self.signs:,} signs are of 0, and count as +1 in both networks")
        lines.append(self._conclusion())
        return "\n".join(lines)


def _number(x: float) -> float | str:
    """Return a number as JSON has it; it has no infinity."""
    return x if math.isfinite(x) else str(x)
