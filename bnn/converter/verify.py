"""Whether what the rules made of a network is what the network computes: each value against PyTorch's, place by place.

A rule may be wrong, or a module may do something else than what its rule says: hooks, exchanged functions, tensors with
a will of their own. So every value is computed from the operands that PyTorch had there, and compared. What uses the
number of images of a batch is tried with other numbers of them.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnn.converter.capture.on_cpu import OnCpu
from bnn.converter.capture.record import BATCH, Captured, Node, Output, RunError, capture, leaves, mapped, random_inputs
from bnn.converter.errors import ConversionError
from bnn.converter.graph.evaluate import Evaluation
from bnn.converter.graph.values import Input, Moved, OffBatch, Refused, Value, live_values
from bnn.converter.levels.planes_check import PlanesCheck
from bnn.converter.lowering import Lowered

# Largest difference that is rounding, as a share of the largest number computed or, times CANCELLED, read.
ROUNDING = 1e-4
CANCELLED = 1e-2
# Mean difference, as a share of the mean, of values behind levels: some lie within rounding of a threshold.
FEW_LEVELS = 0.02
# Numbers of images with which is tried what a network does with the number of images: the first of each with which it
# runs at all.
OTHER_BATCHES = ((1, 3), (5,))


def check_recording(network: nn.Module, captured: Captured) -> None:
    """ConversionError if the network computes something else when it runs again: it is no function of its input."""
    with torch.no_grad(), OnCpu():
        again = network(*[node.results[0].clone() for node in captured.inputs])
    if not _alike(captured.returned, again):
        raise ConversionError(
            f"{type(network).__name__} computes something else than when it was recorded: look for random numbers, for "
            "what counts its calls, and for what asks whether gradients are recorded"
        )


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype
        return same and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    return a is b or type(a) is type(b)


def check_values(lowered: Sequence[Lowered], outputs: list[Value]) -> None:
    """ConversionError at the first place where a value is something else than what PyTorch computes."""
    live = set(live_values(outputs))
    known: dict[Value, Tensor] = {}
    for item in lowered:
        for value, real in _pairs(item):
            if item.node.target is None and isinstance(value, Moved):  # an input that is a volume, a view of a map
                (base,) = value.inputs
                known.setdefault(base, _plain(real).reshape(-1, *base.shape))
            if not isinstance(value, Input | Refused) and (value in live or value in known):
                evaluation = Evaluation(known)
                with torch._C.DisableTorchFunction():  # modes are for the network, not for what it is compared with
                    made = evaluation(value)
                expected = _plain(real)
                if not _same(made, expected, evaluation):
                    difference, largest = float((made - expected).abs().max()), float(expected.abs().max())
                    raise ConversionError(
                        f"{item.node.place}: its rule gives other numbers than the network computes "
                        f"(difference {difference:.2g}, largest number {largest:.2g}). The rule is wrong, the planes "
                        "of a quantizer are not the numbers of its forward, or something changes what the place does, "
                        "such as an exchanged function, a mode or a tensor subclass"
                    )
            if not real.is_meta:
                known.setdefault(value, _plain(real))


def with_numbers(captured: Captured, lowered: Sequence[Lowered], outputs: list[Value]) -> None:
    """Let a recording have the results that the checks read, if it has none as they were too many.

    ConversionError if the network does something else when it runs again.
    """
    if captured.whole:
        return
    live = set(live_values(outputs))
    needed: set[int] = set()
    for item in lowered:
        values = [value for value, _ in _pairs(item)]
        if not values or any(value in live or isinstance(value, OffBatch) for value in values):
            needed.update((item.node.index, *(part.node.index for part in item.node.operands)))
    again = capture(captured.network, [node.results[0] for node in captured.inputs], needed.__contains__)
    if [node.target for node in again.nodes] != [node.target for node in captured.nodes]:
        raise ConversionError(
            f"{type(captured.network).__name__} does something else than when it was recorded: look for what "
            "counts its calls"
        )
    for node, found in zip(captured.nodes, again.nodes, strict=True):
        node.results[:] = found.results


def _plain(x: Tensor) -> Tensor:
    x = x.detach().as_subclass(Tensor)
    return x if x.is_floating_point() and x.dtype == torch.float32 else x.to(torch.float32)


def _pairs(item: Lowered) -> list[tuple[Value, Tensor]]:
    """Return each value that a node was made into, and its numbers."""
    return [pair for pair in zip(item.made, item.node.results, strict=True) if isinstance(pair[0], Value)]


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


def check_batches(
    network: nn.Module, examples: Sequence[Tensor], lowered: Sequence[Lowered], outputs: list[Value],
    ends: dict[Value, int],
) -> None:  # fmt: skip
    """ConversionError at the first place that treats an image in another way in a batch of another size.

    ends: the outputs of the network whose batch is another axis than the first, and which one it is.
    """
    live = set(live_values(outputs))
    for seed, counts in enumerate(OTHER_BATCHES, 1):
        for count in counts:
            try:
                captured = capture(network, random_inputs(examples, count, seed), lambda index: False)
            except RunError as error:
                if count != counts[-1]:
                    continue
                raise ConversionError(
                    f"{error.place}: does not run on a batch of {count} images as it does on one of {BATCH}: "
                    f"{error.reason}"
                ) from None
            _Batch(captured, count, live, ends).run(lowered)
            break


class _Batch:
    """Holds a recording of another number of images, node by node, against that of the trial.

    A node that does not treat its arguments as in the trial runs again, on the trial's own numbers for images of the
    trial in turns: signs of other numbers may fall otherwise.
    """

    def __init__(self, captured: Captured, count: int, live: set[Value], ends: dict[Value, int]):
        self.nodes, self.count, self.live, self.ends = captured.nodes, count, live, ends
        self.images = torch.arange(count) % BATCH
        # Nodes of the trial whose results are images, each by itself; and of others, what they compute here.
        self.of_images: dict[Node, Node] = {}
        self.others: dict[Output, Any] = {}
        self.values_before: set[Value] = set()

    def run(self, lowered: Sequence[Lowered]) -> None:
        for item, here in zip(lowered, self.nodes, strict=False):
            if here.target is not item.node.target or len(here.results) != len(item.node.results):
                self._fail(item.node, "does something else")
            self._node(item, here)
        if len(self.nodes) != len(lowered):
            self._fail([item.node for item in lowered][-1], "is not the end, as it is of what is done")

    def _fail(self, node: Node, what: str) -> None:
        raise ConversionError(
            f"{node.place}: {what} in a batch of {self.count} than in one of {BATCH}: only what does not depend on the "
            f"number of images, and on nothing else than the images, can be converted"
        )

    def _node(self, item: Lowered, here: Node) -> None:
        node = item.node
        pairs = _pairs(item)
        if not pairs:  # made of constants, or of the number of images alone
            for i, x in enumerate(here.results if here.run is None else self._call(node, here)):
                self.others[Output(here, i)] = x
            return
        if node.target is None:
            self._is_alike(item, here)
            return
        if any(isinstance(value, OffBatch) for value, _ in pairs):
            found = self._call(node, here)
            for i, x in enumerate(found):
                self.others[Output(here, i)] = x
            for (value, real), x in zip(pairs, self._of_values(item, found), strict=True):
                if value in self.ends or (value in self.live and not isinstance(value, OffBatch)):
                    self._hold(node, real.movedim(self.ends.get(value, 0), 0), x.movedim(self.ends.get(value, 0), 0))
            return
        # Views of one image may be views of a batch of two alone.
        moves = any(isinstance(value, Moved) or value in self.values_before for value, _ in pairs)
        needed = any(value in self.live for value, _ in pairs)
        if needed and (moves or not self._has_same_arguments(node, here)):
            self._compare(item, here)
        self._is_alike(item, here)

    def _is_alike(self, item: Lowered, here: Node) -> None:
        self.of_images[here] = item.node
        self.values_before.update(value for value, _ in _pairs(item))

    def _has_same_arguments(self, node: Node, here: Node) -> bool:
        mine, theirs = leaves((here.args, here.kwargs)), leaves((node.args, node.kwargs))
        return len(mine) == len(theirs) and all(map(self._is_same, mine, theirs))

    def _is_same(self, mine: Any, theirs: Any) -> bool:
        if isinstance(mine, Output) and isinstance(theirs, Output):
            if self.of_images.get(mine.node) is theirs.node:
                return mine.index == theirs.index
            found = self.others.get(mine)
            return isinstance(found, Tensor) and _is_equal(found, theirs.node.results[theirs.index])
        if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
            return mine is theirs or _is_equal(mine, theirs)
        return type(mine) is type(theirs) and bool(mine == theirs)

    def _argument(self, part: Any) -> Any:
        if not isinstance(part, Output):
            return part
        node = self.of_images.get(part.node)
        if node is not None:
            return node.results[part.index][self.images].contiguous()
        return self.others[part].clone(memory_format=torch.contiguous_format)

    def _call(self, node: Node, here: Node) -> list[Tensor]:
        args, kwargs = mapped((here.args, here.kwargs), self._argument)
        assert here.run is not None
        try:
            with torch.inference_mode():
                return [x for x in leaves(here.run(*args, **kwargs)) if isinstance(x, Tensor)]
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ConversionError(
                f"{node.place}: does not run on a batch of {self.count} images as it does on one of {BATCH}: {error}"
            ) from None

    def _compare(self, item: Lowered, here: Node) -> None:
        for (_, real), b in zip(_pairs(item), self._of_values(item, self._call(item.node, here)), strict=True):
            self._hold(item.node, real, b)

    def _hold(self, node: Node, real: Tensor, b: Tensor) -> None:
        """Hold what images of the trial, batch first, become here against what they became there."""
        a = real[self.images]
        # A squeeze takes the axis of the batch off too where there is one image.
        if self.count == 1 and a.numel() == b.numel():
            b = b.reshape(a.shape)
        if a.shape != b.shape or not torch.allclose(a.float(), b.float(), rtol=1e-5, atol=1e-6, equal_nan=True):
            self._fail(node, "gives an image other numbers")

    @staticmethod
    def _of_values(item: Lowered, found: list[Tensor]) -> list[Tensor]:
        return [x for value, x in zip(item.made, found, strict=True) if isinstance(value, Value)]


def _is_equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def check_planes(network: nn.Module, examples: Sequence[Tensor]) -> None:
    """ConversionError if forward and planes of a quantizer differ where the network computes the examples.

    network: one's own copy, in evaluation mode, float32 on a CPU.
    """
    with torch.no_grad(), OnCpu(), PlanesCheck(network) as check:
        network(*[torch.cat([x] * BATCH) for x in examples])
    check.refuse(" on the weights and the example as it flows through the network")
