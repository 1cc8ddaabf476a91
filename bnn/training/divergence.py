"""Where a training diverged: the layer of a network in which the first number that is not finite arises."""

from typing import Any

import torch
from torch import Tensor, nn


class DivergenceError(RuntimeError):
    """Training whose loss is no finite number any more: its weights are lost.

    findings: what a Doctor that watched the training says, a sentence each; the first are shown with the message.
    """

    SHOWN = 4

    def __init__(self, message: str, findings: tuple[str, ...] = ()):
        super().__init__(message)
        self.findings = findings

    def __str__(self) -> str:
        more = len(self.findings) - self.SHOWN
        rest = [f"{more} more findings in doctor.json"] if more > 0 else []
        return "\n  the doctor: ".join([super().__str__(), *self.findings[: self.SHOWN], *rest])


def _finite(values: Any) -> bool:
    """Return whether all floats of a tensor, or of the tensors of a tuple, list or dict, are finite."""
    if isinstance(values, Tensor):
        return not values.is_floating_point() or bool(values.isfinite().all())
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, tuple | list):
        return True
    return all(_finite(value) for value in values)


def where_not_finite(network: nn.Module, inputs: Tensor) -> str:
    """Return in words which layer of a network turns finite numbers into others, on these inputs (N, ...).

    First by parameters, in the order in which the network names them; a module without a broken parameter of its own
    is looked for by its outputs in a forward pass, innermost first. "the loss" where the outputs are finite.
    """
    if not _finite(inputs):
        return "the inputs"
    broken = [name for name, value in network.named_parameters() if not _finite(value)]
    if broken:
        more = f" and of {len(broken) - 1} more parameters" if len(broken) > 1 else ""
        return f"the values of {broken[0]}{more}, which the step before made"
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if not found and not _finite(output):
                found.append(f"the output of {name or 'the network'} ({type(module).__name__})")

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in network.named_modules()]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "the loss"
