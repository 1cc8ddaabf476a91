"""Code that names a graphics card runs on the CPU, where a packed network runs.

Published networks often move tensors by name in `forward`: `torch.zeros(1).cuda()`, `x.to("cuda")`, `device="cuda"`.
A converted network is a copy on the CPU, and there such a line would mix devices, or fail where PyTorch has no CUDA.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def _of_card(value: Any) -> bool:
    """Whether an argument names a graphics card, as text or as a device."""
    if isinstance(value, str):
        return value == "cuda" or value.startswith("cuda:")
    return isinstance(value, torch.device) and value.type == "cuda"


class OnCpu(TorchFunctionMode):
    """While it is entered, tensors that code would move to a graphics card, or make there, are on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        given = dict(kwargs or {})
        if func is Tensor.cuda:
            return args[0]
        args = tuple(torch.device("cpu") if _of_card(value) else value for value in args)
        given = {name: torch.device("cpu") if _of_card(value) else value for name, value in given.items()}
        return func(*args, **given)
