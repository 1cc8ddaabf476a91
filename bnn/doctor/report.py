"""The doctor's records and findings as JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bnn.doctor.doctor import METRICS, Record
from bnn.doctor.findings import RULES, Finding


def report(records: Sequence[Record], found: Sequence[Finding], every: int) -> dict[str, Any]:
    """Return what a JSON file holds: {"every", "metrics", "bounds", "steps", "loss", "layers", "findings"}.

    metrics: what each says. bounds: where a finding begins, above the value or below it. layers: {layer: {metric:
    values}}. Values stand in the order of the steps; null where there is none. A loss that is not finite is its name,
    a string.
    """
    names = list(dict.fromkeys(name for record in records for name in record.layers))
    layers = {}
    for name in names:
        rows = [record.layers.get(name, {}) for record in records]
        layers[name] = {
            metric: [_rounded(row.get(metric)) for row in rows]
            for metric in METRICS
            if any(metric in row for row in rows)
        }
    return {
        "every": every,
        "metrics": METRICS,
        "bounds": {rule.metric: {"value": rule.bound, "below": rule.below} for rule in RULES},
        "steps": [record.step for record in records],
        "loss": [_loss(record.loss) for record in records],
        "layers": layers,
        "findings": [asdict(finding) for finding in found],
    }


def records_of(content: dict[str, Any]) -> list[Record]:
    """Return the records of a report; ValueError if it is none."""
    try:
        return [
            Record(
                step,
                None if loss is None else float(loss),
                {
                    layer: {metric: values[place] for metric, values in series.items() if values[place] is not None}
                    for layer, series in content["layers"].items()
                },
            )
            for place, (step, loss) in enumerate(zip(content["steps"], content["loss"], strict=True))
        ]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"no report of the doctor: {error!r}") from error


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _loss(value: float | None) -> float | str | None:
    return str(value) if value is not None and not math.isfinite(value) else _rounded(value)
