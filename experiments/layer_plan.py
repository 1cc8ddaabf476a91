"""The plan of bits by layer: what the layers cost, measured, and which widths are best within each of some budgets."""

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from experiments.layer_costs import (
    LayerCosts,
    Widths,
    accuracy_of,
    best_widths,
    cost_of,
    described,
    joined,
    latencies_of,
    losses_of,
    quantized_layers,
    training_images,
    with_latencies,
    with_widths,
)

Plan = dict[str, Any]


def default_budgets(costs: LayerCosts, bits: Sequence[int], cost: str, reference: float) -> list[float]:
    """Return what the uniform widths cost, all but the cheapest, and the geometric means of neighbours, ascending.

    Sums of disturbed timings may be negative, and then the arithmetic mean stands for the geometric one.
    """
    uniform = sorted(cost_of(costs, dict.fromkeys(costs, width), cost, reference) for width in bits)
    between = [
        round((low * high) ** 0.5 if low > 0 else (low + high) / 2, 2) for low, high in itertools.pairwise(uniform)
    ]
    return sorted({*uniform[1:], *between})


def found_widths(
    costs: LayerCosts, bits: Sequence[int], cost: str, reference: float, budgets: Sequence[float] | None
) -> list[tuple[Widths, list[float]]]:
    """Return (widths, the budgets that they are best for) without those that are uniform, in order of the budgets."""
    found: list[tuple[Widths, list[float]]] = []
    for budget in budgets if budgets is not None else default_budgets(costs, bits, cost, reference):
        widths = best_widths(costs, budget, cost, reference)
        same = [group for group in found if group[0] == widths]
        if same:
            same[0][1].append(budget)
        elif len(set(widths.values())) > 1:
            found.append((widths, [budget]))
    return found


def sizes_of(network: Any, image: Any) -> dict[str, dict[str, int]]:
    """Return {layer: how many weights it has, and how many inputs for one image}."""
    import torch

    counts: dict[str, int] = {}
    layers = quantized_layers(network)
    hooks = [
        layer.register_forward_hook(lambda _, given, __, name=name: counts.update({name: given[0][0].numel()}))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            network(image[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: {"weights": layer.weight.numel(), "inputs": counts.get(name, 0)} for name, layer in layers.items()}


def label_of(widths: Widths, sizes: dict[str, dict[str, int]]) -> str:
    """Return the label of an assignment: mean bits of a weight and of an input that is quantized.

    >>> label_of({"a": 2, "b": 4}, {"a": {"weights": 10, "inputs": 30}, "b": {"weights": 30, "inputs": 10}})
    '3.5/2.5 LSQ by layer'
    """

    def mean(kind: str) -> str:
        total = sum(sizes[name][kind] for name in widths)
        return f"{sum(bits * sizes[name][kind] for name, bits in widths.items()) / max(1, total):.3g}"

    return f"{mean('weights')}/{mean('inputs')} LSQ by layer"


def make_plan(
    networks: Sequence[Any],
    data: Any,
    bits: Sequence[int],
    cost: str,
    budgets: Sequence[float] | None,
    batches: int,
    batch_size: int,
) -> Plan:
    """Measure the layers of one network, trained with some seeds, and search.

    Losses are the means over the seeds. Time is that of the first seed's weights, which it does not depend on.
    ValueError if a budget is too small.
    """
    images = [training_images(network, data, batches, batch_size) for network in networks]
    measured = [losses_of(network, data, given, bits) for network, given in zip(networks, images, strict=True)]
    costs, reference = joined([costs for _, costs in measured]), 0.0
    if cost == "latency":
        reference, costs = with_latencies(networks[0], images[0], costs)
    sizes = sizes_of(networks[0], images[0][0])
    assignments: list[dict[str, Any]] = [
        {"cell": f"{width}/{width}", "label": f"{width}/{width} LSQ", "budgets": [], "widths": widths}
        for width, widths in ((width, dict.fromkeys(costs, width)) for width in bits)
    ]
    for number, (widths, within) in enumerate(found_widths(costs, bits, cost, reference, budgets), 1):
        label = label_of(widths, sizes)
        assignments.append({"cell": f"by layer {number}", "label": label, "budgets": within, "widths": widths})
    times = latencies_of(networks[0], images[0], [one["widths"] for one in assignments]) if cost == "latency" else []
    for at, one in enumerate(assignments):
        accuracies = [
            accuracy_of(with_widths(network, one["widths"], given), data)
            for network, given in zip(networks, images, strict=True)
        ]
        one["bytes"] = cost_of(costs, one["widths"], "bytes")
        if times:
            one |= {"predicted_us": cost_of(costs, one["widths"], cost, reference), "measured_us": times[at]}
        one["validation_accuracy_untrained"] = round(statistics.fmean(accuracies), 6)
    return {
        "validation_accuracy": round(statistics.fmean(base for base, _ in measured), 6),
        "cost": cost,
        **({"widest_us": reference} if cost == "latency" else {}),
        "layers": described(costs),
        "sizes": sizes,
        "assignments": assignments,
    }
