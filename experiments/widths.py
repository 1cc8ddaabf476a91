"""Widths of weights and inputs by name, such as "4/8", and what a table of latencies by width should show."""

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

WEIGHTS = ("1", "t", *map(str, range(2, 9)), "32")
INPUTS = (*map(str, range(1, 9)), "32")
_WIDTH = re.compile(rf"({'|'.join(WEIGHTS)})/({'|'.join(INPUTS)})")

# A latency may be so much above that of more bits before it counts as a rise: clocks are noisy.
TOLERANCE = 1.05


class Width(NamedTuple):
    """weights: "1", "t" (ternary), "2" .. "8" or "32" (float); inputs: the same without "t"."""

    weights: str
    inputs: str

    @classmethod
    def parse(cls, text: str) -> "Width":
        """Return the width that "W/A" names; ValueError for another text."""
        match = _WIDTH.fullmatch(text)
        if match is None:
            weights, inputs = ", ".join(WEIGHTS), ", ".join(INPUTS)
            raise ValueError(f"a width is WEIGHTS/INPUTS of {weights} and {inputs}, such as 4/8 or t/8; got {text!r}")
        return cls(*match.groups())

    @property
    def name(self) -> str:
        """The text that `parse` takes."""
        return f"{self.weights}/{self.inputs}"

    @property
    def bits(self) -> tuple[float, float]:
        """Bits of a weight and of an input; a ternary weight has log2(3)."""
        return math.log2(3) if self.weights == "t" else float(self.weights), float(self.inputs)

    def quantizers(self) -> dict[str, Any]:
        """Return the factories `weight_quantizer` and `input_quantizer`: XNOR-Net's, TWN's or LSQ's, or of floats."""
        from bnn import quantizers as q

        weights = {"1": q.XnorWeight, "t": q.TernaryWeight, "32": q.FullPrecision}
        inputs = {"1": q.SteSign, "32": q.FullPrecision}
        return {
            "weight_quantizer": weights.get(self.weights) or partial(q.LsqWeight, bits=int(self.weights)),
            "input_quantizer": inputs.get(self.inputs) or partial(q.LsqActivation, bits=int(self.inputs), signed=True),
        }


def rises(latencies: Mapping[str, float], tolerance: float = TOLERANCE) -> list[dict[str, Any]]:
    """Return the pairs of widths of which the one with fewer bits takes longer than the other, the worst first.

    latencies: times by width. Fewer bits: no more of weights, no more of inputs, and not the same width.

    >>> rises({"1/1": 1.0, "2/2": 3.0, "4/4": 2.0, "8/2": 2.95})
    [{'fewer': '2/2', 'more': '4/4', 'ratio': 1.5}]
    """
    found = []
    for fewer, time in latencies.items():
        for more, other in latencies.items():
            below = zip(Width.parse(fewer).bits, Width.parse(more).bits, strict=True)
            if fewer != more and all(a <= b for a, b in below) and time > tolerance * other:
                found.append({"fewer": fewer, "more": more, "ratio": round(time / other, 2)})
    return sorted(found, key=lambda pair: -pair["ratio"])
