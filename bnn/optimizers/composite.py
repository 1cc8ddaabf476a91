"""One optimizer made of several, each for parameters of other roles."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from bnn.optimizers.roles import ROLES

REST = "rest"


class CompositeOptimizer(Optimizer):
    """Binary weights by one optimizer, real parameters by another, behind the interface of one.

    Schedulers see all parameter groups, `state_dict` is that of one optimizer over all of them, and Lightning, gradient
    scalers and checkpoints need not know. Each inner optimizer keeps its own arithmetic.

    groups: parameter groups with a "role" each, as `parameter_groups(model)` makes them.
    optimizers: {role: factory}, factory(groups) -> optimizer; the roles that are not named go to the one under "rest".
        A role that no parameter has makes no optimizer.
    rest: more arguments of the factory under "rest", such as lr.
    ValueError if groups have no role, a role is unknown, or one has no optimizer.

    >>> layer = torch.nn.Linear(2, 1)
    >>> groups = [{"params": [layer.weight], "role": "latent"}, {"params": [layer.bias], "role": "bias"}]
    >>> from functools import partial
    >>> from bnn.optimizers import Bop
    >>> optimizer = CompositeOptimizer(groups, {"latent": Bop, "rest": torch.optim.SGD}, lr=0.1)
    >>> [(group["role"], group["lr"]) for group in optimizer.param_groups]
    [('latent', 1.0), ('bias', 0.1)]
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        optimizers: Mapping[str, Callable[..., Optimizer]],
        **rest: Any,
    ):
        groups = list(groups)
        if not all(isinstance(group, dict) and "role" in group for group in groups):
            raise ValueError("a parameter group needs a role: make them with bnn.optimizers.parameter_groups(model)")
        if rest and REST not in optimizers:
            raise ValueError(f"{', '.join(rest)} would go to the optimizer under {REST!r}, but there is none")
        unknown = set(optimizers) - {*ROLES, REST}
        if unknown:
            raise ValueError(f"optimizers for unknown roles {sorted(unknown)}; roles are {', '.join(ROLES)}, {REST}")
        self.optimizers: dict[str, Optimizer] = {}
        for key, factory in optimizers.items():
            members = [group for group in groups if self._key(group["role"], optimizers) == key]
            if members:  # an FP32 twin has no latent weights
                self.optimizers[key] = factory(members, **(rest if key == REST else {}))
        self._adding = False
        # The groups of the inner optimizers are the very same dicts, so a scheduler that sets one sets the other.
        order = {id(group["params"][0]): place for place, group in enumerate(groups)}
        inner = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        super().__init__(sorted(inner, key=lambda group: order[id(group["params"][0])]), {})
        self._adding = True
        self._share()

    @staticmethod
    def _key(role: str, optimizers: Mapping[str, Any]) -> str:
        if role in optimizers:
            return role
        if REST not in optimizers:
            raise ValueError(f"no optimizer for parameters of the role {role!r}: name one, or one for {REST!r}")
        return REST

    def _share(self) -> None:
        """Give the inner optimizers this one's state and their share of its groups."""
        for key, optimizer in self.optimizers.items():
            mine = [group for group in self.param_groups if self._key(group["role"], self.optimizers) == key]
            optimizer.param_groups, optimizer.state = mine, self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self._adding:
            if "role" not in param_group:
                raise ValueError("a parameter group needs a role")
            key = self._key(param_group["role"], self.optimizers)
            self.optimizers[key].add_param_group(param_group)
            param_group = self.optimizers[key].param_groups[-1]
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Evaluate the closure once, then step every inner optimizer; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers.values():
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"optimizers": self.optimizers, "_adding": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @property
    def latent_free(self) -> bool:
        """Whether an inner optimizer keeps its weights binary, so that there are no latents to clip or centre."""
        return any(getattr(optimizer, "latent_free", False) for optimizer in self.optimizers.values())
