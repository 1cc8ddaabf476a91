"""Latent weights that are pruned, parametrized or shared keep their role and their bounds, or are refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from bnn.latent import center_latent_weights, clip_latent_weights, latent_weights
from bnn.layers import QuantConv2d, QuantLinear
from bnn.optimizers import parameter_roles
from bnn.quantizers import SteSign

SIGNS = {"weight_quantizer": SteSign, "input_quantizer": SteSign}


class Mask(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", (torch.arange(24).reshape(4, 6) % 2).float())

    def forward(self, weight):
        return weight * self.mask


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.5), "0.weight_orig"


def masked(layer):
    return parametrize.register_parametrization(layer, "weight", Mask()), "0.parametrizations.weight.original"


@pytest.mark.parametrize("change", [pruned, masked])
def test_pruned_and_parametrized_weights_are_latent(change):
    layer, name = change(QuantLinear(6, 4, **SIGNS))
    model = nn.Sequential(layer)
    assert [found for found, _ in latent_weights(model)] == [name]
    assert parameter_roles(model) == {name: "latent", "0.bias": "bias"}
    ((_, latent),) = latent_weights(model)
    with torch.no_grad():
        latent.mul_(100)
    clip_latent_weights(model, 0.5)
    model(torch.randn(3, 6)).sum().backward()
    assert layer.weight.abs().max() == 0.5
    assert latent.grad.abs().sum() > 0
    center_latent_weights(model)
    assert latent.mean(1).abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("change", [nn.utils.weight_norm, nn.utils.spectral_norm, parametrizations.weight_norm])
def test_weights_of_several_parameters_are_refused_by_their_path(change):
    model = nn.Sequential(change(QuantConv2d(3, 4, 3, **SIGNS)))
    for call in (parameter_roles, clip_latent_weights, center_latent_weights):
        with pytest.raises(ValueError, match=r"^0: its weight is computed from several parameters"):
            call(model)


def test_tied_weights_have_one_role():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), QuantLinear(4, 4, bias=False, **SIGNS))
    model[0].weight = model[1].weight
    assert parameter_roles(model) == {"0.weight": "latent"}


def test_synchronized_batch_norm_is_a_norm():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(QuantConv2d(3, 4, 3, **SIGNS), nn.BatchNorm2d(4)))
    assert isinstance(model[1], nn.SyncBatchNorm)
    assert {role for name, role in parameter_roles(model).items() if name.startswith("1.")} == {"norm"}
