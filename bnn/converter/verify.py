"""Whether what the rules made of a network is what the network computes: each value against PyTorch's, place by place.

A rule may be wrong, or a module may do something else than what its rule says: hooks, exchanged functions, tensors with
a will of their own. So every value is computed from the operands that PyTorch had there, and compared. What uses the
number of images of a batch is tried with other numbers of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from bnn.converter.errors import ConversionError
from bnn.converter.evaluate import Evaluation
from bnn.converter.graph import Input, Moved, OffBatch, Refused, Value, live_values
from bnn.converter.trace import BATCH, Traced

# Largest difference that is rounding, as a share of the largest number computed or, times CANCELLED, read.
ROUNDING = 1e-4
CANCELLED = 1e-2
# Mean difference, as a share of the mean, of values behind levels: some lie within rounding of a threshold.
FEW_LEVELS = 0.02
# Numbers of images with which is tried what a network does with the number of images.
OTHER_BATCHES = (1, 5)


@dataclass(frozen=True)
class Lowered:
    """What a node of the graph was made into, and what it computes for a batch of BATCH images: both as they were then.

    made, found: a Value and a tensor, or tuples of such, or anything else that does not depend on the images.
    written: nodes of which the result is this one's from then on, as it works in place.
    """

    node: fx.Node
    made: Any
    found: Any
    written: Sequence[fx.Node] = ()


def check_values(traced: Traced, lowered: Sequence[Lowered], outputs: list[Value]) -> None:
    """ConversionError at the first place where a value is something else than what PyTorch computes."""
    live = set(live_values(outputs))
    known: dict[Value, Tensor] = {}
    for item in lowered:
        for value, real in _pairs(item.made, item.found):
            if not isinstance(value, Input | Refused) and (value in live or value in known):
                evaluation = Evaluation(known)
                with torch._C.DisableTorchFunction():  # modes are for the network, not for what it is compared with
                    made = evaluation(value)
                expected = _plain(real)
                if not _same(made, expected, evaluation):
                    difference, largest = float((made - expected).abs().max()), float(expected.abs().max())
                    raise ConversionError(
                        f"{traced.places[item.node]}: its rule gives other numbers than the network computes "
                        f"(difference {difference:.2g}, largest number {largest:.2g}). The rule is wrong, the planes "
                        "of a quantizer are not the numbers of its forward, or something changes what the place does, "
                        "such as an exchanged function, a mode or a tensor subclass"
                    )
            known.setdefault(value, _plain(real))


def _plain(x: Tensor) -> Tensor:
    x = x.detach().as_subclass(Tensor)
    return x if x.is_floating_point() and x.dtype == torch.float32 else x.to(torch.float32)


def _pairs(made: Any, found: Any) -> list[tuple[Value, Tensor]]:
    if isinstance(made, Value) and isinstance(found, Tensor):
        return [(made, found)]
    if isinstance(made, tuple | list) and isinstance(found, tuple | list):
        return [pair for a, b in zip(made, found, strict=True) for pair in _pairs(a, b)]
    return []


def _same(made: Tensor, real: Tensor, evaluation: Evaluation) -> bool:
    if made.shape != real.shape:
        return False
    if not made.numel():
        return True
    difference, sizes = (made - real).abs(), real.abs()
    largest = float(sizes.max())
    if not math.isfinite(largest) or not math.isfinite(float(difference.max())):
        finite = real.isfinite()
        if not torch.equal(made.nan_to_num(0.0, 1.0, -1.0)[~finite], real.nan_to_num(0.0, 1.0, -1.0)[~finite]):
            return False
        difference, sizes = (torch.where(finite, x, 0.0) for x in (difference, sizes))
        largest = float(sizes.max())
    if float(difference.max()) <= ROUNDING * max(largest, CANCELLED * evaluation.largest):
        return True
    return evaluation.quantized and float(difference.mean()) <= FEW_LEVELS * float(sizes.mean())


def check_batches(traced: Traced, lowered: Sequence[Lowered]) -> None:
    """ConversionError at the first place that treats an image in another way in a batch of another size."""
    for count in OTHER_BATCHES:
        _Batch(traced, count).run(lowered)


class _Batch:
    """Runs what depends on the number of images, for another number, on the images of the trial in turns."""

    def __init__(self, traced: Traced, count: int):
        self.traced, self.count = traced, count
        self.images = torch.arange(count) % BATCH
        self.modules = dict(traced.module.named_modules())
        # What nodes computed for the images of the trial, each by itself, and what others computed for this batch.
        self.images_of: dict[fx.Node, Any] = {}
        self.values_before: set[Value] = set()
        self.values: dict[fx.Node, Any] = {}
        # Nodes that are made of the images, and those that are made of their number alone.
        self.of_images: set[fx.Node] = set()
        self.by_count: set[fx.Node] = set()

    def run(self, lowered: Sequence[Lowered]) -> None:
        for item in lowered:
            self._run(item)
            for node in item.written:
                self.images_of[node] = item.found

    def _run(self, item: Lowered) -> None:
        depends = any(node in self.by_count for node in item.node.all_input_nodes)
        pairs = _pairs(item.made, item.found)
        if not pairs:
            self._constant(item, depends)
            return
        self.of_images.add(item.node)
        if any(isinstance(value, OffBatch) for value, _ in pairs):
            self.values[item.node] = self._call(item)
            return
        self.images_of[item.node] = item.found
        # Views of one image may be views of a batch of two alone.
        moves = item.node.op in ("call_function", "call_method") and any(
            isinstance(value, Moved) or value in self.values_before for value, _ in pairs
        )
        self.values_before.update(value for value, _ in pairs)
        if depends or moves:
            self._compare(item)

    def _constant(self, item: Lowered, depends: bool) -> None:
        node = item.node
        of_images = any(operand in self.of_images for operand in node.all_input_nodes)
        if not depends and not of_images:
            self.values[node] = item.found
            return
        self.values[node] = self._call(item)
        if not _equal(self.values[node], item.found):
            self.by_count.add(node)

    def _spread(self, found: Any) -> Any:
        """Return what each of the images gave, in the batch."""
        if isinstance(found, Tensor):
            return found[self.images]
        if isinstance(found, tuple | list):
            return tuple(map(self._spread, found))
        return found

    def _call(self, item: Lowered) -> Any:
        node = item.node

        def argument(operand: fx.Node) -> Any:
            if operand in self.images_of:
                return self._spread(self.images_of[operand])
            value = self.values[operand]
            return value.clone() if isinstance(value, Tensor) else value

        args: Any = fx.map_arg(node.args, argument)
        kwargs: Any = fx.map_arg(node.kwargs, argument)
        try:
            if node.op == "call_module":
                return self.modules[str(node.target)](*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            assert callable(node.target)
            return node.target(*args, **kwargs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ConversionError(
                f"{self.traced.places[node]}: does not run on a batch of {self.count} images as it does on one of "
                f"{BATCH}: {error}"
            ) from None

    def _compare(self, item: Lowered) -> None:
        expected = [real[self.images] for _, real in _pairs(item.made, item.found)]
        found = [real for _, real in _pairs(item.made, self._call(item))]
        for a, b in zip(expected, found, strict=True):
            # A squeeze takes the axis of the batch off too where there is one image.
            if self.count == 1 and a.numel() == b.numel():
                b = b.reshape(a.shape)
            if a.shape != b.shape or not torch.allclose(a.float(), b.float(), rtol=1e-5, atol=1e-6, equal_nan=True):
                raise ConversionError(
                    f"{self.traced.places[item.node]}: gives an image other numbers in a batch of {self.count} than in "
                    f"one of {BATCH}: only what does not depend on the number of images can be converted"
                )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b) if type(a) is type(b) else False
