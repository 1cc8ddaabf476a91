"""Weights that become few-valued through the optimizer: PARQ, ProxQuant and BinaryRelax around any optimizer."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from bnn.quantizers.relaxed_weight import check_levels, nearest_codes

Map = Literal["parq", "proxquant", "binary_relax"]


def bound_of(u: Tensor, levels: int) -> Tensor:
    """Return the highest level for latents u: min(k mean|u|, max|u|), k = 1, 1.5, 2, 3 for 2, 3, 4, 8 levels and so on.

    Two levels are the least-squares ones; that of three is Lloyd and Max's for normal weights, 1.53 mean|u|.
    It is never above max|u|, so some weight always has it, by which `RelaxedWeight` finds the levels again.
    """
    factor = 1.5 if levels == 3 else math.log2(levels)
    return torch.minimum(factor * u.abs().mean(), u.abs().max())


def toward_levels(u: Tensor, levels: int, hardness: float, map: Map) -> Tensor:
    """Return u moved toward the nearest of the levels: u itself at hardness 0, the level at 1. See `Proximal`."""
    if hardness <= 0:
        return u.clone()
    bound = bound_of(u, levels)
    spacing = 2 * bound / (levels - 1)
    nearest = nearest_codes(u, bound, levels) * (spacing / 2)
    if hardness >= 1:
        return nearest
    if map == "binary_relax":
        return torch.lerp(u, nearest, hardness)
    if map == "proxquant":
        rest = u - nearest
        shrunk = (rest.abs() - hardness / (1 - hardness) * spacing / 2).clamp(min=0)
        return nearest + torch.copysign(shrunk, rest)
    lower = ((u + bound) / torch.where(spacing > 0, spacing, 1)).floor().clamp(0, levels - 2) * spacing - bound
    center = lower + spacing / 2
    moved = center + (u - center) / (1 - hardness)
    return torch.maximum(torch.minimum(moved, lower + spacing), lower)


class Proximal(Optimizer):
    """An optimizer of latents u, and weights w = prox(u) that a network sees: PARQ, ProxQuant or BinaryRelax.

    A step takes the gradient at w, lets the inner optimizer change u by it, and sets w = prox(u). Levels are `levels`
    evenly spaced ones of each parameter, from -b to b with b of `bound_of`, anew in every step. What prox does between
    u and its nearest level Q(u) grows with the option `hardness` of the parameter group, h, which a schedule raises
    from 0 (w = u, training with floats) to 1 (w = Q(u), the straight-through estimator). By `map`:

    - "parq": in the interval of two levels around u, with center m, w = m + (u - m) / (1 - h), clipped to the interval;
      the outermost level beyond all. The prox of a convex, piecewise-affine regularizer.
      Jin et al., "PARQ", 2025, arXiv:2503.15748; there 1 - h falls by a sigmoid (`bnn.training.Sigmoid`).
    - "proxquant": w = Q(u) + sgn(u - Q(u)) max(|u - Q(u)| - d h / (2 - 2 h), 0), d the distance of levels: the prox of
      the distance to the nearest level. Bai et al., "ProxQuant", ICLR 2019, section 3; the function of h is ours.
    - "binary_relax": w = (1 - h) u + h Q(u). Yin et al., "BinaryRelax", SIAM J. Imaging Sciences 2018.

    Where the papers fit levels by least squares to more than two of them, those of here are evenly spaced, so that they
    become one term of bit planes. The layers' weight quantizer must let w pass: `RelaxedWeight(levels)`.

    params: parameters or groups. optimizer: factory of the inner optimizer, optimizer(groups). levels: 2, 3, 4, 8, ...
    256. hardness: h at first. State of a parameter: that of the inner optimizer and `latent`, u.
    ValueError for other levels, maps and an h outside [0, 1].

    >>> weight = torch.nn.Parameter(torch.tensor([0.5, -1.5]))
    >>> optimizer = Proximal([weight], lambda groups: torch.optim.SGD(groups, lr=0.5), levels=2, hardness=1.0)
    >>> weight.grad = torch.tensor([2.0, 0.0])
    >>> optimizer.step()
    >>> optimizer.state[weight]["latent"].tolist(), weight.tolist()
    ([-0.5, -1.5], [-1.0, -1.0])
    """

    def __init__(
        self,
        params: Any,
        optimizer: Callable[[Any], Optimizer],
        levels: int,
        map: Map = "parq",
        hardness: float = 0.0,
    ):
        check_levels(levels)
        if map not in ("parq", "proxquant", "binary_relax"):
            raise ValueError(f"map must be 'parq', 'proxquant' or 'binary_relax', got {map!r}")
        if not 0 <= hardness <= 1:
            raise ValueError(f"hardness must lie in [0, 1], got {hardness!r}")
        self._inner = optimizer(params)
        self._map: Map = map
        options = {"levels": levels, "hardness": float(hardness)}
        super().__init__(self._inner.param_groups, {**self._inner.defaults, **options})
        self._share()

    def _share(self) -> None:
        """Give the inner optimizer this one's groups and state, which a loaded state or another optimizer exchanged."""
        self._inner.param_groups, self._inner.state = self.param_groups, self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Evaluate the closure at w, step the latents, and set the weights; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._share()
        for group in self.param_groups:
            for weight in group["params"]:
                # Not self.state[weight], which makes one: the inner optimizer would take it for its own.
                if "latent" in self.state.get(weight, {}):
                    weight.copy_(self.state[weight]["latent"])
        self._inner.step()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None and "latent" not in self.state.get(weight, {}):
                    continue
                self.state[weight]["latent"] = weight.detach().clone()
                weight.copy_(toward_levels(weight, group["levels"], group["hardness"], self._map))
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_inner": self._inner, "_map": self._map}
