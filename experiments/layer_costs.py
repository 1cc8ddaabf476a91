"""What each layer of a network costs at each width in accuracy, bytes and time; the best widths within a budget."""

import copy
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.progress import track

from experiments import cli
from experiments.layer_widths import change_widths

COSTS = ("bytes", "latency")
# Seconds of timing for each network.
SECONDS = 0.5

Widths = dict[str, int]


@dataclass(frozen=True)
class Choice:
    """One layer at one width, all others as they are.

    bytes: of its weights. losses: the share of the validation split that is lost, for each network that was measured.
    us: microseconds that the packed network takes more than with this layer at the widest (mostly negative); None if
    it was not timed.
    """

    bytes: int
    losses: tuple[float, ...]
    us: float | None = None

    @property
    def loss(self) -> float:
        """The mean of the losses."""
        return sum(self.losses) / len(self.losses)


# {layer: {bits: what it costs}}
LayerCosts = Mapping[str, Mapping[int, Choice]]


def check_widths(bits: Iterable[Any]) -> list[int]:
    """Return widths in order; ValueError unless they are different numbers from 1 to 8, at least one."""
    found = sorted(int(width) for width in bits)
    if not found or found[0] < 1 or found[-1] > 8 or len(set(found)) < len(found):
        raise ValueError(f"bits must be different numbers from 1 to 8, got {found}")
    return found


def quantized_layers(network: Any) -> dict[str, Any]:
    """Return {dotted name: layer} of the layers that widths can be given; ValueError if there are none."""
    from bnn.layers.base import QuantLayer

    found = {name: layer for name, layer in network.named_modules() if isinstance(layer, QuantLayer)}
    if not found:
        raise ValueError(f"{type(network).__name__} has no quantized layer")
    return found


def with_widths(network: Any, widths: Mapping[str, int], images: Iterable[Any]) -> Any:
    """Return a copy of a network, in evaluation mode, whose layers of these names have so many bits (LSQ).

    images: batches of training inputs, by which steps begin.
    """
    import bnn
    from bnn.quantizers import LsqActivation, LsqWeight

    changed = copy.deepcopy(network)
    change_widths(changed, widths, LsqWeight, functools.partial(LsqActivation, signed=True))
    return bnn.calibrate(changed.eval(), images)


def training_images(network: Any, data: Any, batches: int, batch_size: int) -> list[Any]:
    """Return batches of training inputs for `with_widths`, the same each time."""
    import bnn

    found = data.batches("train", batch_size, shuffle=True, seed=0, pixels=bnn.takes_pixels(network))
    return [inputs for inputs, _ in itertools.islice(found, batches)]


def accuracy_of(network: Any, data: Any, split: str = "validation") -> float:
    """Return the share of a split that a network in evaluation mode gets right."""
    import torch

    import bnn

    right = total = 0
    with torch.no_grad():
        for inputs, labels in data.batches(split, data.evaluation_batch, pixels=bnn.takes_pixels(network)):
            right += int((network(inputs).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


def losses_of(network: Any, data: Any, images: Sequence[Any], bits: Sequence[int]) -> tuple[float, LayerCosts]:
    """Return (accuracy on the validation split, what each layer alone loses of it at each width)."""
    base = accuracy_of(network, data)
    costs: dict[str, dict[int, Choice]] = {}
    layers = quantized_layers(network)
    for name, layer in track(layers.items(), "layers", transient=True, console=cli.console()):
        costs[name] = {}
        for width in bits:
            loss = base - accuracy_of(with_widths(network, {name: width}, images), data)
            costs[name][width] = Choice(-(-layer.weight.numel() * width // 8), (round(loss, 6),))
    return base, costs


def latencies_of(network: Any, images: Sequence[Any], assignments: Sequence[Mapping[str, int]]) -> list[float]:
    """Return the microseconds of the packed network with each of some widths: one input, one thread, all in turn."""
    import bnn_kernels as bk
    from bnn_kernels.model.warm import example_inputs

    import bnn
    from experiments.timing import in_turn

    packed = [bnn.convert(with_widths(network, widths, images), images[0][:1]) for widths in assignments]
    calls = [functools.partial(model, *example_inputs(model, 1)) for model in packed]
    threads = bk.get_num_threads()
    bk.set_num_threads(1)
    try:
        return [round(1e6 * timing.median, 2) for timing in in_turn(calls, SECONDS * len(calls))]
    finally:
        bk.set_num_threads(threads)


def with_latencies(network: Any, images: Sequence[Any], costs: LayerCosts) -> tuple[float, LayerCosts]:
    """Return (microseconds with all layers at the widest, the costs with the microseconds of each width).

    Whole packed networks are timed that differ in one layer, so that a layer's time has all that depends on its width:
    how its inputs are quantized and packed, wherever that is done.
    """
    widest = {name: max(widths) for name, widths in costs.items()}
    changed = [(name, width) for name, widths in costs.items() for width in widths if width != widest[name]]
    reference, *times = latencies_of(network, images, [widest, *({**widest, name: width} for name, width in changed)])
    more = {pair: round(time - reference, 2) for pair, time in zip(changed, times, strict=True)}
    timed = {
        name: {width: Choice(one.bytes, one.losses, more.get((name, width), 0.0)) for width, one in widths.items()}
        for name, widths in costs.items()
    }
    return reference, timed


def joined(found: Sequence[LayerCosts]) -> LayerCosts:
    """Return the costs of one network trained with several seeds: all their losses."""
    return {
        name: {
            width: Choice(one.bytes, tuple(loss for costs in found for loss in costs[name][width].losses), one.us)
            for width, one in widths.items()
        }
        for name, widths in found[0].items()
    }


def cost_of(costs: LayerCosts, widths: Mapping[str, int], cost: str, reference: float = 0.0) -> float:
    """Return the bytes or the microseconds of an assignment, those of its layers added up.

    cost: of COSTS. reference: microseconds with all layers at the widest.
    """
    if cost == "bytes":
        return sum(costs[name][width].bytes for name, width in widths.items())
    return round(reference + sum(_us(costs[name][width]) for name, width in widths.items()), 2)


def _us(choice: Choice) -> float:
    if choice.us is None:
        raise ValueError("the layers were not timed")
    return choice.us


def best_widths(costs: LayerCosts, budget: float, cost: str = "bytes", reference: float = 0.0) -> Widths:
    """Return {layer: bits} within a budget whose losses have the least sum, exactly; of equals the cheaper.

    cost, reference: as of `cost_of`. ValueError if no assignment is cheap enough. Layers are joined one by one; of the
    assignments so far those stay that can still end within the budget and that no other beats in both cost and loss.
    """
    price = {
        name: {width: float(one.bytes) if cost == "bytes" else _us(one) for width, one in widths.items()}
        for name, widths in costs.items()
    }
    left = sum(min(prices.values()) for prices in price.values())  # the least that is still to come
    start = 0.0 if cost == "bytes" else reference
    least, kept = start + left, [(start, 0.0, Widths())]
    for layer, widths in costs.items():
        left -= min(price[layer].values())
        longer = [
            (spent + price[layer][bits], loss + one.loss, {**chosen, layer: bits})
            for (spent, loss, chosen), (bits, one) in itertools.product(kept, widths.items())
        ]
        kept = []
        for found in sorted((one for one in longer if one[0] + left <= budget + 1e-9), key=lambda one: one[:2]):
            if not kept or found[1] < kept[-1][1]:
                kept.append(found)
    if not kept:
        unit = "bytes" if cost == "bytes" else "microseconds"
        raise ValueError(f"budget={budget:g} {unit} is too small: the cheapest widths take {least:,.8g}")
    return kept[-1][2]


def described(costs: LayerCosts) -> dict[str, list[dict[str, Any]]]:
    """Return the costs as result files have them."""
    return {
        name: [
            {"bits": width, "bytes": one.bytes, "loss": round(one.loss, 6)}
            | ({"losses": list(one.losses)} if len(one.losses) > 1 else {})
            | ({} if one.us is None else {"more_us": one.us})
            for width, one in widths.items()
        ]
        for name, widths in costs.items()
    }


def read_costs(layers: Mapping[str, Sequence[Mapping[str, Any]]]) -> LayerCosts:
    """Undo `described`."""
    return {
        name: {
            one["bits"]: Choice(one["bytes"], tuple(one.get("losses", [one["loss"]])), one.get("more_us"))
            for one in widths
        }
        for name, widths in layers.items()
    }
