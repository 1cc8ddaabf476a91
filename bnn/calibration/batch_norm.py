"""Statistics of batch normalization, estimated again for the values that a quantized network has."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnn.calibration.batches import call, device_of, evaluating, inputs_of, random_numbers_kept


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Replace, in place, the running means and variances of batch norms by those of some batches, and return the model.

    Quantizing a layer changes the mean and the variance of its output, which the statistics of training do not know.
    Each becomes the plain mean over the batches of what a batch has (its variance is the unbiased one). Everything but
    the batch norms runs in evaluation, so layers are as quantized as they are in use; a batch norm sees what those
    before it make with the statistics of the same batch, as in training. Batches should be as large as in training.
    Wu, Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3, where this is PreciseBN.

    batches: as for `bnn.calibrate`. ValueError if the model has no batch norm with statistics, and for batches as in
    `bnn.calibrate`; an error leaves the statistics as they were.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        raise ValueError("the model has no batch norm with running statistics that could be estimated again")
    before = [({name: value.clone() for name, value in norm.named_buffers()}, norm.momentum) for norm in norms]
    done = False
    with torch.no_grad(), random_numbers_kept(model), evaluating(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a mean over all batches
                norm.training = True
            for given in inputs_of(batches, device_of(model)):
                call(model, given)
            done = True
        finally:
            for norm, (state, momentum) in zip(norms, before, strict=True):
                norm.momentum = momentum
                if not done or not norm.num_batches_tracked:  # one that no batch reached
                    for name, value in state.items():
                        getattr(norm, name).copy_(value)
    return model
