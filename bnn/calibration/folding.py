"""Batch normalization folded into the layer before it: the same function with one layer less."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from bnn.calibration.layer_graph import LayerGraph, is_batch_norm, output_axis


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Return a new model in which batch norms behind layers are part of them, nn.Identity in their place.

    For a convolution or linear layer whose output a batch norm alone reads: W' = W gamma / sqrt(var + eps) and
    b' = beta + (b - mean) gamma / sqrt(var + eps), with the statistics of evaluation. What the model computes in
    evaluation stays the same up to rounding; a batch norm elsewhere stays.
    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
    2018, section 3.2.

    ValueError if torch.fx cannot trace the model.
    """
    model = copy.deepcopy(model)
    graph = LayerGraph.of(model)
    for node, layer in graph.layers():
        user = graph.only_user(node)
        norm = None if user is None else graph.module(user)
        grouped = getattr(layer, "groups", 1) > 1 and output_axis(layer) == 1
        if norm is None or not is_batch_norm(norm) or grouped:
            continue
        _fold(layer, norm)
        for parent in model.modules():
            for name, child in parent._modules.items():
                if child is norm:
                    parent._modules[name] = nn.Identity().train(norm.training)
    return model


def _fold(layer: Any, norm: Any) -> None:
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    with torch.no_grad():
        if isinstance(layer, nn.Linear):
            weight, bias = fuse_linear_bn_weights(layer.weight, layer.bias, *statistics)
        else:
            weight, bias = fuse_conv_bn_weights(
                layer.weight, layer.bias, *statistics, transpose=output_axis(layer) == 1
            )
    layer.weight = nn.Parameter(weight.detach(), layer.weight.requires_grad)
    layer.bias = nn.Parameter(bias.detach(), layer.weight.requires_grad)
