"""Hyper-parameters that change during training: attributes of modules and options of optimizers.

A value is a function of the share of training that is done, so a run that is interrupted goes on with the values that
it would have had.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from bnn.training.curves import Curve

By = Literal["epoch", "step"]


@dataclass(frozen=True)
class ModuleSchedule:
    """Sets `attribute` of modules to curve(p) at the start of every epoch or step.

    of: the class name of the modules, or None for any. name: a pattern of their dotted names in the network (`*`, `?`,
    `[...]`). A floating-point attribute that is a tensor (a buffer) is filled in place, a number is replaced. p is
    epoch / epochs or step / steps, counted from 0.

    ModuleSchedule("t", Exponential(0.1, 10.0), of="EdeSign") is IR-Net's schedule.
    """

    attribute: str
    curve: Curve
    of: str | None = None
    name: str = "*"
    by: By = "epoch"

    def set(self, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], p: float) -> None:
        """Set the value that belongs to p; ValueError if there is nothing to set."""
        value = float(self.curve(p))
        for module in self._modules(network):
            old = getattr(module, self.attribute)
            if isinstance(old, Tensor):
                with torch.no_grad():
                    old.fill_(value)
            else:
                setattr(module, self.attribute, value)

    def _modules(self, network: nn.Module) -> list[nn.Module]:
        named = [(name, module) for name, module in network.named_modules() if fnmatchcase(name, self.name)]
        found = [module for _, module in named if self.of is None or type(module).__name__ == self.of]
        having = [module for module in found if hasattr(module, self.attribute)]
        if self.of is not None and len(having) < len(found):
            raise ValueError(f"{self.of} has no attribute {self.attribute!r} that a schedule could set")
        if not having:
            kinds = sorted({type(module).__name__ for module in network.modules()})
            wanted = f"{self.of or 'module'} named {self.name!r} with an attribute {self.attribute!r}"
            raise ValueError(f"the network has no {wanted}; its modules are of the types {', '.join(kinds)}")
        for module in having:
            if isinstance(getattr(module, self.attribute), nn.Parameter):
                raise ValueError(f"{self.attribute!r} of {type(module).__name__} is learned: it cannot be scheduled")
        return having


@dataclass(frozen=True)
class OptimizerSchedule:
    """Sets an option of the optimizer's parameter groups to curve(p), such as gamma of Bop.

    role: only groups of this role ("latent", "weight", ...), or None for every group that has the option.
    """

    option: str
    curve: Curve
    role: str | None = None
    by: By = "epoch"

    def set(self, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], p: float) -> None:
        """Set the value that belongs to p; ValueError if there is nothing to set."""
        groups = [group for group in self._groups(optimizers) if self.option in group]
        if not groups:
            options = sorted({key for group in self._groups(optimizers) for key in group} - {"params", "role"})
            raise ValueError(
                f"no parameter group{f' of role {self.role!r}' if self.role else ''} has the option {self.option!r}; "
                f"options are {', '.join(options) or 'none'}"
            )
        for group in groups:
            group[self.option] = float(self.curve(p))

    def _groups(self, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[dict[str, Any]]:
        for optimizer in optimizers:
            yield from (group for group in optimizer.param_groups if self.role in (None, group.get("role")))


Schedule = ModuleSchedule | OptimizerSchedule


class Scheduling(Callback):
    """Applies schedules during training; their modules are looked for in the `network` of the Lightning module."""

    def __init__(self, schedules: Sequence[Schedule]):
        for schedule in schedules:
            if schedule.by not in ("epoch", "step"):
                raise ValueError(f"by must be 'epoch' or 'step', got {schedule.by!r}")
        self._schedules = schedules
        self._steps = 1.0

    def _apply(self, trainer: Trainer, pl_module: LightningModule, by: By, p: float) -> None:
        for schedule in self._schedules:
            if schedule.by == by:
                schedule.set(pl_module.network, trainer.optimizers, p)  # type: ignore[arg-type]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = trainer.estimated_stepping_batches

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert trainer.max_epochs is not None
        self._apply(trainer, pl_module, "epoch", trainer.current_epoch / trainer.max_epochs)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._apply(trainer, pl_module, "step", trainer.global_step / self._steps)
