"""The exponential moving average of weights: what is evaluated, kept in checkpoints and converted."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn


class _Average(AveragedModel):
    """Averages parameters and the statistics of normalizations; every other buffer is the current one.

    The mean of two rotations is no rotation and that of two counts no count: what a quantizer holds in buffers, and its
    flags of having begun with data, are copied.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, avg_fn=get_ema_avg_fn(decay))
        self._share = 1 - decay

    def update_parameters(self, model: nn.Module) -> None:
        ours, theirs = _statistics(self.module), _statistics(model)
        before = [statistic.clone() for statistic in ours]
        first = int(self.n_averaged) == 0
        super().update_parameters(model)  # copies all buffers
        if not first and ours:
            torch._foreach_copy_(ours, torch._foreach_lerp(before, theirs, self._share))


def _statistics(network: nn.Module) -> list[Tensor]:
    """Return the running means and variances of a network's normalizations."""
    norms = [module for module in network.modules() if isinstance(module, _NormBase)]
    return [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]


class WeightAverage(EMAWeightAveraging):
    """Averages the module's weights after each step of the optimizer: average <- d average + (1 - d) weights.

    The first step's weights begin the average, when quantizers that begin with data have done so. Validation and
    test see the average, a checkpoint's `state_dict` is the average, and the module holds it after training; the
    weights that are trained lie in the checkpoint's `current_model_state`. ValueError unless 0 < decay < 1.
    """

    def __init__(self, decay: float):
        if isinstance(decay, bool) or not isinstance(decay, float | int) or not 0 < decay < 1:
            raise ValueError(f"ema must be a decay between 0 and 1, such as 0.999, or null; got {decay!r}")
        super().__init__(use_buffers=False, decay=decay)
        self._decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._average_model = _Average(pl_module, self._decay).to(pl_module.device)
        elif self._average_model is not None:
            # Lightning copies it at the end of training, which a run that had already ended does not reach.
            self._copy_average_to_current(pl_module)
