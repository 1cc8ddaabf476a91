"""Bop, the optimizer of binary weights without latent weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from bnn.quantizers.straight_through import sign


def checked_options(gamma: float, threshold: float, lr: float) -> dict[str, Any]:
    """Return the options of a parameter group; ValueError, naming it, for one outside its range."""
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma!r}")
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold!r}")
    if not 0 <= lr * gamma <= 1:
        raise ValueError(f"lr is a factor on gamma, and lr * gamma must lie in [0, 1]; got {lr!r} * {gamma!r}")
    return {"gamma": gamma, "threshold": threshold, "lr": lr}


class Bop(torch.optim.Optimizer):
    """Flips binary weights whose averaged gradient asks for it strongly enough.

        m <- (1 - gamma) m + gamma g
        w <- -w  if |m| > threshold and sign(m) = sign(w),  else w

    Helwegen et al., "Latent Weights Do Not Exist: Rethinking Binarized Neural Network Optimization", NeurIPS 2019,
    algorithm 1. The paper's CIFAR-10 network: gamma = 1e-4, threshold = 1e-8, gamma divided by 10 every 100 epochs.

    The parameters are the binary weights themselves: they become their signs (+1 for 0) when the optimizer is made,
    and stay in {-1, +1}. Use it with a weight quantizer that returns +-1 unchanged and passes the whole gradient
    there, which is SteSign (its window includes |w| = 1); a scale that is computed from the weights would be 1.

    gamma: adaptivity rate, in [0, 1]. threshold: >= 0. lr: a factor on gamma in [0, 1 / gamma], so that any
    learning-rate scheduler decays gamma. ValueError for values outside. State of a parameter: `average`, m.
    """

    # There is no latent weight that could be clipped, centred or decayed.
    latent_free = True

    def __init__(self, params: ParamsT, gamma: float = 1e-4, threshold: float = 1e-8, lr: float = 1.0):
        super().__init__(params, checked_options(gamma, threshold, lr))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        with torch.no_grad():
            for weight in self.param_groups[-1]["params"]:
                weight.copy_(sign(weight))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Average the gradients and flip; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                signal = self._signal(group, self.state[weight], weight.grad.to(weight.dtype))
                # w is +-1: w m > threshold says both that the signs agree and that |m| is large enough.
                weight.copy_(torch.where(weight * signal > group["threshold"], -weight, weight))
        return loss

    def _signal(self, group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> Tensor:
        """Return m after this step, by which a weight flips."""
        if "average" not in state:
            state["average"] = torch.zeros_like(gradient)
        average: Tensor = state["average"]
        return average.lerp_(gradient, group["gamma"] * group["lr"])
