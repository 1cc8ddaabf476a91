"""A copy of a model, whatever its recurrent layers hold."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def copied(model: nn.Module, kept: Mapping[int, Any] | None = None) -> nn.Module:
    """Return copy.deepcopy of a model. kept: what the copy holds instead of copies of things, by their id.

    A recurrent layer keeps the weights that a parametrization last made, with their gradients; those cannot be copied,
    and are made anew in its next forward.
    """
    lists = [m._flat_weights for m in model.modules() if isinstance(m, nn.RNNBase)]
    made = {id(w): w.detach().clone() for weights in lists for w in weights if isinstance(w, Tensor) and not w.is_leaf}
    return copy.deepcopy(model, made | dict(kept or {}))
