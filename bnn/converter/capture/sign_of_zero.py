"""torch.sign with two values, as bits have it: while somebody asks for that, sign(0) is +1."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_OF_THREAD = threading.local()
_SIGNS = (torch.ops.aten.sign, torch.ops.aten.sign_, torch.ops.aten.sgn, torch.ops.aten.sgn_)


class PositiveZeros(TorchDispatchMode):
    """While it is entered, signs of floats that are 0 become +1. signs, zeros: how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.signs = self.zeros = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave the compiler out, whose import takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _SIGNS and result.is_floating_point():
            zeros = result == 0
            self.signs += result.numel()
            self.zeros += int(zeros.sum())
            result.masked_fill_(zeros, 1)
        return result


def zero_is_positive() -> bool:
    """Whether sign(0) is +1 in this thread."""
    return getattr(_OF_THREAD, "value", 0) == 1


@contextmanager
def sign_of_zero_is(value: int) -> Iterator[PositiveZeros]:
    """Within it, torch.sign(0) is this value, 0 or 1, in this thread; ValueError on another one."""
    if value not in (0, 1):
        raise ValueError(f"sign_of_zero must be 0, as PyTorch has it, or 1, got {value!r}")
    before, mode = getattr(_OF_THREAD, "value", 0), PositiveZeros()
    _OF_THREAD.value = value
    try:
        if value == 0:
            yield mode
        else:
            with mode:
                yield mode
    finally:
        _OF_THREAD.value = before
