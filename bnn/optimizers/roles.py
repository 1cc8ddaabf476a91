"""What each parameter of a network is, and parameter groups made by it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bnn.latent import latent_weights
from bnn.quantizers.base import Quantizer

# In the order of the groups: the first group's learning rate is the one that a learning curve shows.
ROLES = ("weight", "norm", "bias", "quantizer", "latent")

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_roles(model: nn.Module) -> dict[str, str]:
    """Return {dotted name: role} of every parameter that is trained.

    - "latent": a weight behind a weight quantizer that has bit planes, see `bnn.latent.latent_weights`;
    - "quantizer": what a quantizer learns (scales, thresholds, shifts);
    - "norm": weight and bias of a normalization;
    - "bias": any other parameter of at most one axis;
    - "weight": any other, a weight in full precision.
    """
    latent = {id(weight) for _, weight in latent_weights(model)}
    owners = dict(model.named_modules())
    quantizers = [name for name, module in owners.items() if isinstance(module, Quantizer)]
    roles = {}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        if not parameter.requires_grad:
            continue
        if id(parameter) in latent:
            roles[name] = "latent"
        elif any(owner == q or owner.startswith(f"{q}.") or q == "" for q in quantizers):
            roles[name] = "quantizer"
        elif isinstance(owners[owner], _NORMS):
            roles[name] = "norm"
        else:
            roles[name] = "bias" if parameter.ndim <= 1 else "weight"
    return roles


def parameter_groups(
    model: nn.Module, no_decay: Sequence[str] = ("latent",), glorot_rates: bool = False, step_rates: bool = False
) -> list[dict[str, Any]]:
    """Return one parameter group for each role that the model has: {"params", "role"}, as torch optimizers take them.

    no_decay: roles whose weight decay is 0, whatever the optimizer's is. Latent weights are spared by default: the
    sign of a weight does not feel its size, so decay only drags latents to zero, where they flip at random.
    glorot_rates: a group for each latent weight, with `rate_scale` = 1 / sqrt(1.5 / (fan in + fan out)), by which
    `scale_rates` multiplies its learning rate: BinaryConnect's and BinaryNet's rule (Courbariaux et al. 2015, section
    2.5), the inverse of Glorot's initial bound, for latents in [-1, 1].
    step_rates: the learned steps of evenly spaced levels (LSQ) in groups of their own, with `rate_scale` = 1 / Q of the
    level Q that is the furthest from 0: then a step moves the ends of its range, s Q, as far as the learning rate says,
    as a weight moves. Optimizers such as Adam, whose steps do not grow with the gradient, undo the factor by which LSQ
    multiplies the gradient to that end (Esser et al. 2020, section 2.2), and move a step of 8 bits as far as a weight.
    ValueError if a role is unknown or nothing is trained.
    """
    unknown = set(no_decay) - set(ROLES)
    if unknown:
        raise ValueError(f"no_decay has unknown roles {sorted(unknown)}; roles are {', '.join(ROLES)}")
    roles = parameter_roles(model)
    if not roles:
        raise ValueError(f"{type(model).__name__} has no parameter that is trained")
    parameters = dict(model.named_parameters())
    groups: list[dict[str, Any]] = []
    steps = _learned_steps(model) if step_rates else {}
    for role in ROLES:
        members = [parameters[name] for name, given in roles.items() if given == role and name not in steps]
        spared = {"weight_decay": 0.0} if role in no_decay else {}
        if role == "latent" and glorot_rates:
            groups += [{"params": [w], "role": role, "rate_scale": _glorot_rate(w)} | spared for w in members]
        elif members:
            groups.append({"params": members, "role": role} | spared)
        if role == "quantizer":
            for level in sorted(set(steps.values())):
                of_level = [parameters[name] for name in steps if steps[name] == level and name in roles]
                groups += [{"params": of_level, "role": role, "rate_scale": 1 / level} | spared] if of_level else []
    return groups


def _learned_steps(model: nn.Module) -> dict[str, int]:
    """Return {dotted name: the level furthest from 0} of each step of evenly spaced levels that is a parameter."""
    found = {}
    for name, module in model.named_modules():
        grid = module.grid if isinstance(module, Quantizer) else None
        if grid is not None and isinstance(getattr(module, "step", None), nn.Parameter):
            found[f"{name}.step" if name else "step"] = max(-grid.low, grid.high)
    return found


def _glorot_rate(weight: nn.Parameter) -> float:
    positions = weight[0, 0].numel() if weight.ndim > 1 else 1
    fans = weight.shape[0] + (weight.shape[1] if weight.ndim > 1 else 1)
    return (positions * fans / 1.5) ** 0.5


def scale_rates(optimizer: torch.optim.Optimizer) -> None:
    """Multiply the learning rate of each group that has a `rate_scale` by it; before a scheduler is made.

    ValueError for an optimizer without latents (Bop), whose lr is no step of a weight.
    """
    for group in optimizer.param_groups:
        if "rate_scale" not in group:
            continue
        if group["role"] == "latent" and getattr(optimizer, "latent_free", False):
            raise ValueError(f"{type(optimizer).__name__} has no latent weights whose rates could be scaled")
        group["lr"] *= group["rate_scale"]
