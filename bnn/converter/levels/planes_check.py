"""Whether the planes of quantizers are what their forward computes, on the numbers that an evaluation meets.

A layer is trained with `forward` and evaluated and packed with `planes`. Where they differ, everything behind them
agrees with itself and not with what was trained.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnn.converter.errors import ConversionError
from bnn.converter.tally import Tally
from bnn.planes import Planes
from bnn.quantizers.base import Quantizer

PROMISE = "Let planes(x).value() equal forward(x) in evaluation, bit for bit"


def _value(quantizer: Quantizer, planes: Planes, expected: Tensor, path: str) -> np.ndarray:
    value = planes.value()
    if value.shape != expected.shape:
        raise ConversionError(
            f"{path}: the planes of {type(quantizer).__name__} have a value of shape {tuple(value.shape)}, its forward "
            f"gives {tuple(expected.shape)}; {PROMISE}"
        )
    return value.detach().numpy()


def check_same(quantizer: Quantizer, x: Tensor, path: str, where: str) -> None:
    """ConversionError unless forward and planes of a quantizer agree on x. where: what x is, for the message."""
    with torch.no_grad():
        expected = quantizer(x)
        tally = Tally("planes", path, exact=True)
        tally.add(_value(quantizer, quantizer.planes(x), expected, path), expected.numpy())
    _refuse(tally, quantizer, where)


def _refuse(tally: Tally, quantizer: Quantizer, where: str) -> None:
    if tally.different:
        raise ConversionError(
            f"{tally.source}: the planes of {type(quantizer).__name__} are not what its forward computes: "
            f"{tally.different:,} of {tally.elements:,} values differ{where}, by up to {tally.largest:.3g}. Training "
            f"uses forward; evaluation and the packed network use planes. {PROMISE}"
        )


class PlanesCheck:
    """Compares forward and planes of every quantizer of a network whenever an evaluation uses one of them.

    network: one's own copy, in evaluation mode. Within `with` its quantizers are watched.
    """

    def __init__(self, network: nn.Module):
        self.quantizers = {
            path: module
            for path, module in network.named_modules()
            if isinstance(module, Quantizer) and module.packable
        }
        self.tallies = {
            path: Tally("planes", f"{path} ({type(quantizer).__name__})", exact=True)
            for path, quantizer in self.quantizers.items()
        }
        self._handles: list[Any] = []
        self._before: dict[str, Any] = {}
        # Quantizers that are being compared: forward may use planes, and planes forward.
        self._busy: set[str] = set()

    def __enter__(self) -> "PlanesCheck":
        for path, quantizer in self.quantizers.items():
            self._before[path] = vars(quantizer).get("planes")
            vars(quantizer)["planes"] = functools.partial(self._planes, path, quantizer.planes)
            self._handles.append(quantizer.register_forward_hook(functools.partial(self._forward, path)))
        return self

    def __exit__(self, *error: object) -> None:
        for path, quantizer in self.quantizers.items():
            del vars(quantizer)["planes"]
            if self._before[path] is not None:
                vars(quantizer)["planes"] = self._before[path]
        for handle in self._handles:
            handle.remove()

    def _planes(self, path: str, planes: Callable[[Tensor], Planes], x: Tensor) -> Planes:
        if path in self._busy:
            return planes(x)
        self._busy.add(path)
        try:
            found = planes(x)
            self._compare(path, found, self.quantizers[path](x))
        finally:
            self._busy.discard(path)
        return found

    def _forward(self, path: str, quantizer: Quantizer, given: tuple[Any, ...], result: Tensor) -> None:
        if path in self._busy:
            return
        self._busy.add(path)
        try:
            self._compare(path, quantizer.planes(given[0]), result)
        finally:
            self._busy.discard(path)

    def _compare(self, path: str, planes: Planes, expected: Tensor) -> None:
        value = _value(self.quantizers[path], planes, expected, path)
        self.tallies[path].add(value, expected.detach().numpy())

    def used(self) -> tuple[Tally, ...]:
        """Return the tallies of the quantizers that were used."""
        return tuple(tally for tally in self.tallies.values() if tally.elements)

    def refuse(self, where: str) -> None:
        """ConversionError if planes and forward of a quantizer differ. where: on what numbers, for the message."""
        for path, tally in self.tallies.items():
            _refuse(tally, self.quantizers[path], where)
