"""What the parity report says, as a table and as JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Any

# float32 sums of some thousand products in two orders.
FLOAT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class StepParity:
    """One output of one step against PyTorch.

    exact: integers, or levels from integers or from PyTorch's own floats. levels: integers or levels, else floats.
    explained: different levels of floats within rounding of their threshold.
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

    @property
    def ok(self) -> bool:
        """No different element of an exact step; levels of floats only within rounding; floats within tolerance."""
        if self.exact:
            return self.different == 0
        return self.different == self.explained if self.levels else self.relative_difference <= FLOAT_TOLERANCE

    @property
    def kind(self) -> str:
        """What is compared: "exact", "signs" of floats, or "float"."""
        return "exact" if self.exact else "signs" if self.levels else "float"


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

    steps: each fed with PyTorch's values. free: the same steps when both run freely. agreement: share of equal
    predictions (argmax over axis 1) and max_difference: largest difference of the outputs, then.
    """

    inputs: int
    steps: tuple[StepParity, ...]
    free: FreeRun
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
            "max_output_difference": self.max_difference,
            "largest_relative_difference": self.largest_relative_difference,
            "first_difference": None if first is None else f"{first.step} ({first.source})",
            "free_run": {
                "different_levels": self.free.different_levels,
                "first_difference": None if free is None else asdict(free),
            },
            "steps": [{**asdict(step), "ok": step.ok} for step in self.steps],
        }

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        rows = [("step", "checked at", "kind", "elements", "different", "rounding", "max diff", "relative", "")]
        for s in self.steps:
            counts = (f"{s.elements:,}", f"{s.different:,}", f"{s.explained:,}" if s.kind == "signs" else "")
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
        lines.append(
            f"{self.inputs} inputs: predictions agree on {self.agreement:.2%}, "
            f"largest output difference {self.max_difference:.2g}: {'parity holds' if self.ok else 'PARITY FAILS'}"
        )
        return "\n".join(lines)
