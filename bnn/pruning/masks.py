"""Masks of torch.nn.utils.prune on the parameters of a network: set up, changed, and made permanent."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

_ORIGINAL, _MASK = "_orig", "_mask"  # as torch.nn.utils.prune names them


def add_mask(module: nn.Module, name: str) -> None:
    """Put a mask of ones on a parameter; from then on its original is what is trained.

    ValueError if the module has no such parameter of its own, as one that is masked or parametrized already.
    """
    if module._parameters.get(name) is None:
        raise ValueError(f"its {name} is pruned or parametrized already (torch.nn.utils): remove that first")
    with torch.no_grad():  # what the module holds until its next forward can be copied then
        prune.identity(module, name)


def set_mask(module: nn.Module, name: str, mask: Tensor) -> None:
    """Change the mask of a parameter in place; the module has the masked parameter from now on."""
    with torch.no_grad():
        getattr(module, f"{name}{_MASK}").copy_(mask)
        for hook in _hooks(module):
            if hook._tensor_name == name:
                setattr(module, name, hook.apply_mask(module))


def remove_masks(network: nn.Module) -> None:
    """Make every mask of a network permanent: parameters have their own names again, and zeros."""
    with torch.no_grad():
        for module in network.modules():
            for hook in list(_hooks(module)):
                prune.remove(module, hook._tensor_name)


def merged_masks(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with masked parameters in the place of originals and masks; others as they are."""
    masked = [name for name in state if name.endswith(_ORIGINAL) and name.removesuffix(_ORIGINAL) + _MASK in state]
    merged = dict(state)
    for name in masked:
        stem = name.removesuffix(_ORIGINAL)
        original = merged.pop(name)
        merged[stem] = merged.pop(stem + _MASK).to(original.dtype) * original
    return merged


def _hooks(module: nn.Module) -> Iterator[Any]:
    return (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, prune.BasePruningMethod))
