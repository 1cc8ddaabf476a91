"""Named findings: what the doctor's records say is wrong, layer by layer, and what to try."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bnn.doctor.doctor import Record

# Records before anything is said of a layer. What is said is of their last third: what stays wrong, not how it began.
_LEAST = 3


@dataclass(frozen=True)
class Finding:
    """layer: dotted name, "" for the whole network. kind: name of the rule. value: what was measured."""

    layer: str
    kind: str
    value: float | None
    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.text}" if self.layer else self.text


@dataclass(frozen=True)
class _Rule:
    """A finding wherever the recent mean of `metric` passes `bound`, from above or, if `below`, from below."""

    kind: str
    metric: str
    bound: float
    text: Callable[[float], str]
    advice: str
    below: bool = False

    def holds(self, value: float) -> bool:
        return value < self.bound if self.below else value > self.bound


def _percent(words: str) -> Callable[[float], str]:
    return lambda value: f"{100 * value:.0f} % of {words}"


RULES = (
    _Rule(
        "constant channels",
        "constant_channels",
        0.1,
        _percent("channels constant"),
        "a constant carries nothing: normalize before the quantizer, or learn its threshold (RSign)",
    ),
    _Rule(
        "constant filters",
        "constant_filters",
        0.1,
        _percent("filters constant"),
        "their weights are all alike: centre the latents or lower a ternary threshold",
    ),
    _Rule(
        "restless weights",
        "flip_rate",
        0.02,
        lambda value: f"{100 * value:.1f} % of weights flip at every step",
        "lower the learning rate of latents, or the rate and threshold of Bop",
    ),
    _Rule(
        "saturated latents",
        "saturated",
        0.5,
        _percent("latent weights at the clip bound"),
        "lower the learning rate of latents, or widen their clip",
    ),
    _Rule(
        "no gradient",
        "no_gradient",
        0.9,
        _percent("latent weights get no gradient"),
        "the surrogate passes nothing (widen its window, clip latents to it), or inputs are 0 (see constant channels)",
    ),
    _Rule(
        "lopsided weights",
        "weight_entropy",
        0.5,
        lambda value: f"signs of weights are lopsided, entropy {value:.2f} bit",
        "centre the latents (center_latents, Libra-PB)",
        below=True,
    ),
    _Rule(
        "lopsided inputs",
        "input_entropy",
        0.5,
        lambda value: f"quantized inputs are lopsided, entropy {value:.2f} bit",
        "normalize before the quantizer, or learn its threshold (RSign)",
        below=True,
    ),
    _Rule(
        "far from latents",
        "distance",
        0.8,
        lambda value: f"quantized weights keep {100 * (1 - value):.0f} % of the latents' energy",
        "the quantizer drops most of the weight: more bits, a lower threshold, or latents without outliers",
    ),
    _Rule(
        "weight gradient mismatch",
        "weight_mismatch",
        0.8,
        lambda value: f"the surrogate's gradient of the weights misses the quantizer's (1 - cos {value:.2f})",
        "narrow the surrogate towards the end of training (EDE), or scale latents to its window",
    ),
    _Rule(
        "input gradient mismatch",
        "input_mismatch",
        0.8,
        lambda value: f"the surrogate's gradient of the inputs misses the quantizer's (1 - cos {value:.2f})",
        "use a tighter surrogate (ApproxSign, EDE), or normalize inputs to its window",
    ),
)
KINDS = ("not finite", "no better than guessing", "loss does not fall", "frozen weights", *(r.kind for r in RULES))


def findings(records: Sequence[Record], classes: int | None = None) -> list[Finding]:
    """Return the findings of a training's records, those of the whole network first.

    classes: number of classes of a classifier trained by cross-entropy: at a loss of ln(classes) it guesses.
    """
    if not records:
        return []
    recent = records[-math.ceil(len(records) / 3) :]
    found = _of_loss(records, recent, classes)
    for layer in records[-1].layers if len(records) >= _LEAST else ():
        flips = [record.layers[layer]["flip_rate"] for record in records if "flip_rate" in record.layers.get(layer, {})]
        if flips and max(flips) == 0:
            text = f"no weight changed in {len(flips)} watched steps"
            found.append(
                Finding(layer, "frozen weights", 0.0, text, "raise the learning rate of latents; see its gradient")
            )
        for rule in RULES:
            values = [r.layers[layer][rule.metric] for r in recent if rule.metric in r.layers.get(layer, {})]
            mean = sum(values) / len(values) if values else None
            if mean is not None and rule.holds(mean):
                found.append(Finding(layer, rule.kind, mean, rule.text(mean), rule.advice))
    return found


def _of_loss(records: Sequence[Record], recent: Sequence[Record], classes: int | None) -> list[Finding]:
    known = [record for record in records if record.loss is not None]
    broken = [record for record in known if record.loss is not None and not math.isfinite(record.loss)]
    if broken:
        text = f"the loss is not finite at step {broken[0].step}"
        return [
            Finding("", "not finite", None, text, "lower the learning rate; look for a scale that grew or became 0")
        ]
    losses = [record.loss for record in recent if record.loss is not None]
    if len(known) < _LEAST or not losses:
        return []
    last, first = sum(losses) / len(losses), known[0].loss
    assert first is not None
    if classes is not None and last > 0.95 * math.log(classes):
        text = f"the loss, {last:.3g}, is no better than guessing among {classes} classes ({math.log(classes):.2f})"
        return [
            Finding("", "no better than guessing", last, text, "see the findings of its layers, from the last upwards")
        ]
    if last >= first:
        text = f"the loss does not fall: {first:.3g} at first, {last:.3g} at last"
        return [
            Finding("", "loss does not fall", last, text, "lower the learning rate; see the findings of its layers")
        ]
    return []
