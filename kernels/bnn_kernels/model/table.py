"""The table that a packed model prints of itself."""

from collections.abc import Sequence
from typing import NamedTuple

from bnn_kernels.steps.base import Spec


class StepCost(NamedTuple):
    """One step: its outputs, "W1A1"-like precision ("" if it multiplies nothing), MACs for an image, stored bytes.

    kernel: what it runs on this CPU and why, "" if it multiplies nothing.
    """

    op: str
    source: str
    outputs: list[Spec]
    precision: str
    macs: int
    nbytes: int
    kernel: str = ""


def macs_by_precision(costs: Sequence[StepCost]) -> dict[str, int]:
    """Return the multiply-accumulates for one image of each precision, the most first."""
    totals: dict[str, int] = {}
    for cost in costs:
        if cost.macs:
            totals[cost.precision] = totals.get(cost.precision, 0) + cost.macs
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _describe(spec: Spec) -> str:
    kind = f"{len(spec.multipliers)}-bit" if spec.kind == "bits" else spec.kind
    return f"{kind} {'x'.join(map(str, spec.shape))}{' as bytes' if spec.as_bytes else ''}"


def table(costs: Sequence[StepCost], seconds: Sequence[float] | None = None, stored: int | None = None) -> str:
    """Return one line a step, totals below.

    seconds: the time of each step, if measured. stored: bytes that a file has of them, fewer if some are equal or
    floats in 16 bits.
    """
    rows = [("step", "from", "output", "bits", "MACs", "bytes") + (() if seconds is None else ("us",)) + ("kernel",)]
    for i, cost in enumerate(costs):
        outputs = ", ".join(map(_describe, cost.outputs))
        clock = () if seconds is None else (f"{seconds[i] * 1e6:,.1f}",)
        macs = f"{cost.macs:,}" if cost.macs else ""
        rows.append((cost.op, cost.source, outputs, cost.precision, macs, f"{cost.nbytes:,}", *clock, cost.kernel))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(w) if 3 < i < len(row) - 1 else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    used = sum(cost.nbytes for cost in costs)
    total = f"{len(costs)} steps, {used:,} bytes of weights and thresholds"
    if stored is not None and stored < used:
        total += f" ({stored:,} stored)"
    macs = "".join(f", {count:,} MACs {precision}" for precision, count in macs_by_precision(costs).items())
    time = "" if seconds is None else f", {sum(seconds) * 1e6:,.0f} us"
    return "\n".join([*(line.rstrip() for line in lines), total + macs + time])
