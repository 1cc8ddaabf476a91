"""Narrower networks: output channels that are constant, or that nobody makes use of, are taken out."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from bnn.layers.base import QuantLayer, weight_planes
from bnn.model_copy import copied
from bnn.planes import Planes
from bnn.pruning.channel_path import ChannelPath, channel_paths
from bnn.pruning.fixed_planes import FixedPlanes
from bnn.pruning.masks import remove_masks


class Narrowed(NamedTuple):
    """A network without its dead channels.

    network: a new one, in evaluation mode. widths: {layer: (output channels before, now)} of the layers that lost some.
    kept: {layer: why} of the layers all of whose dead channels stay.
    """

    network: nn.Module
    widths: dict[str, tuple[int, int]]
    kept: dict[str, str]


def remove_dead_channels(network: nn.Module, example_input: Tensor) -> Narrowed:
    """Return a narrower network that answers as this one: without output channels that are constant or never used.

    A channel is dead if its filter is 0, or if a batch norm behind multiplies it by 0, so that it is a constant where
    the next layer reads it; or if that layer's weights of it are all 0. What a constant adds to the next layer goes
    into that layer's bias. Where the map is padded with another value than the constant that would be wrong at the
    border, and the channel stays; so do those that are read by several layers, added to or joined with others, or whose
    reader scales its inputs by all of them. Quantized weights keep their bits and scales, but do not learn any more.

    network: in evaluation mode; masks of torch.nn.utils.prune are applied. It is not changed. example_input: of which
    only the shape counts.

    Answers are the same bit for bit where the constants are 0 and layers add integers; otherwise within the rounding of
    float sums. ValueError if the network is in train mode or torch.fx cannot trace it.
    """
    for path, module in network.named_modules():
        if module.training:
            raise ValueError(f"{path or 'the network'} is in train mode: call eval() first")
    with torch.no_grad():
        masked = copied(network)
        remove_masks(masked)
        paths = channel_paths(masked)
        shapes = _shapes(masked, paths, example_input[:1])
        widths: dict[str, tuple[int, int]] = {}
        kept: dict[str, str] = {}
        for name, path in paths.items():
            if isinstance(path, str):
                if bool(_zero_rows(masked.get_submodule(name)).any()):
                    kept[name] = path
                continue
            try:
                dead = _Dead.of(path, shapes)
            except _StayError as error:
                kept[name] = str(error)
                continue
            if dead is None:
                continue
            keep = (~dead.removed).nonzero().flatten()
            before = len(dead.removed)
            dead.take_out(keep)
            widths[name] = before, len(keep)
    return Narrowed(masked, widths, kept)


class _StayError(Exception):
    """Why dead channels of a layer stay."""


class _Shapes(fx.Interpreter):
    """Runs a network and keeps the shapes of what the nodes make."""

    def __init__(self, network: nn.Module, graph: fx.Graph):
        super().__init__(network, graph=graph)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
        return result


def _shapes(network: nn.Module, paths: dict[str, Any], x: Tensor) -> dict[fx.Node, torch.Size]:
    graph = next((path.graph.graph for path in paths.values() if isinstance(path, ChannelPath)), None)
    if graph is None:
        return {}
    interpreter = _Shapes(network, graph)
    interpreter.run(x)
    return interpreter.shapes


@dataclass(frozen=True)
class _Dead:
    """The dead channels of a path.

    removed: bool (C,). values: (C,), what the reader multiplies of each, 0 if unused. block: how many of the reader's
    inputs each is.
    """

    path: ChannelPath
    removed: Tensor
    values: Tensor
    block: int

    @classmethod
    def of(cls, path: ChannelPath, shapes: dict[fx.Node, torch.Size]) -> "_Dead | None":
        """Return the dead channels that can be taken out, None if there are none; _StayError if some are and cannot."""
        layer, reader = path.module(path.layer), path.module(path.reader)
        dead, values = _constants(path, layer, shapes)
        read = _by_channel(_reads(reader), len(dead))
        unused = ~read.flatten(1).any(1)
        if not bool((dead | unused).any()):
            return None
        if getattr(reader, "input_scale", False):
            raise _StayError(f"{path.reader} scales its inputs by the mean of all channels")
        quantizer = getattr(reader, "input_quantizer", None)
        if quantizer is not None and not quantizer.elementwise:
            raise _StayError(f"the input quantizer of {path.reader} looks at all channels")
        shape = shapes[path.between[-1] if path.between else path.node]
        spread = _spread(values, shape, path.axis)
        read_values = _constant_of(spread if quantizer is None else quantizer(spread), len(dead), path.axis)[0]
        if _padded(reader):
            dead = dead & (read_values == _pad_of(reader))
        removed = dead | unused
        if not bool(removed.any()):
            raise _StayError(f"{path.reader} pads its input with another value than their constants")
        if bool(removed.all()):
            removed = removed.clone()
            removed[0] = False  # a layer has a channel
        return cls(path, removed, torch.where(removed & ~unused, read_values, 0), read.shape[1])

    def take_out(self, keep: Tensor) -> None:
        """Take them out of the layer, of what lies between and of the reader, in place."""
        path = self.path
        layer, reader = path.module(path.layer), path.module(path.reader)
        inputs = (keep[:, None] * self.block + torch.arange(self.block)).flatten()
        self._add_constants(reader)
        _take_weight(layer, 0, keep)
        if layer.bias is not None:
            layer.bias = _part(layer.bias, keep)
        for node in path.between:
            if node.op == "call_module":
                _take_channels(path.module(str(node.target)), len(self.removed), keep)
        _take_weight(reader, 1, inputs)
        if isinstance(reader, QuantLayer):
            _take_quantizer(reader, len(self.removed) * self.block, inputs)

    def _add_constants(self, reader: Any) -> None:
        """Add to the reader's bias what the constants make of its weights."""
        weight = _reads(reader).double()
        weight = weight.reshape(*weight.shape[:2], -1).sum(2)
        constants = self.values.double().repeat_interleave(self.block)
        added = (weight * constants).sum(1)
        if not bool(added.any()):
            return
        bias = torch.zeros_like(added) if reader.bias is None else reader.bias.double()
        reader.bias = nn.Parameter((bias + added).to(reader.weight.dtype), reader.weight.requires_grad)


def _reads(layer: Any) -> Tensor:
    """Return the weight that a layer multiplies by."""
    if isinstance(layer, QuantLayer) and layer.weight_quantizer.packable:
        return Planes(weight_planes(layer).terms).value()
    weight: Tensor = layer.weight.detach()
    return weight


def _zero_rows(layer: Any) -> Tensor:
    weight = _reads(layer)
    return ~weight.flatten(1).any(1)


def _by_channel(weight: Tensor, channels: int) -> Tensor:
    """Return a reader's weight (outputs, inputs, ...) as (channels, block, outputs, ...)."""
    return weight.transpose(0, 1).reshape(channels, -1, weight.shape[0], *weight.shape[2:])


def _constants(path: ChannelPath, layer: Any, shapes: dict[fx.Node, torch.Size]) -> tuple[Tensor, Tensor]:
    """Return which channels (C,) are constant where the reader gets them, and their values (C,), 0 of the others."""
    dead = _zero_rows(layer)
    values = torch.zeros(len(dead), dtype=layer.weight.dtype)
    if layer.bias is not None:
        values = torch.where(dead, layer.bias, values)
    before = path.node
    for node in path.between:
        y = _run(path, node, before, _spread(values, shapes[before], path.axis))
        values, even = _constant_of(y, len(dead), path.axis)
        module = path.module(str(node.target)) if node.op == "call_module" else None
        if isinstance(getattr(module, "running_var", None), Tensor) and module is not None and module.affine:
            dead = dead | (module.weight == 0)
        dead = dead & even
        values = torch.where(dead, values, 0)
        before = node
    return dead, values


def _run(path: ChannelPath, node: fx.Node, before: fx.Node, x: Tensor) -> Tensor:
    """Return what a node makes of x in the place of the node before."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: x if n is before else n)
    if node.op == "call_module":
        result = path.module(str(node.target))(*args, **kwargs)
    elif node.op == "call_method":
        result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    else:
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    assert isinstance(result, Tensor)
    return result


def _spread(values: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """Return values of channels as a map of a shape (1, ...) with channels on an axis, which may be flattened maps."""
    if len(shape) == 2:
        return values.repeat_interleave(shape[1] // len(values)).reshape(1, -1)
    return values.reshape([-1 if at == axis % len(shape) else 1 for at in range(len(shape))]).expand(shape).clone()


def _constant_of(x: Tensor, channels: int, axis: int) -> tuple[Tensor, Tensor]:
    """Return the first value of each channel, and which channels have no other; undoes `_spread`."""
    rows = (x[:1] if x.ndim == 2 else x[:1].movedim(axis, 1)).reshape(1, channels, -1)[0]
    return rows[:, 0], (rows == rows[:, :1]).all(1)


def _padded(layer: Any) -> bool:
    """Whether a layer sees something beside its input that a constant would not be."""
    padding = getattr(layer, "padding", 0)
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return False  # of the map's own values
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in layer.kernel_size)
    return any(padding) if isinstance(padding, tuple) else bool(padding)


def _pad_of(layer: Any) -> float:
    return float(getattr(layer, "pad_value", 0.0))


def _part(parameter: Tensor, keep: Tensor, axis: int = 0) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(axis, keep).clone(), parameter.requires_grad)


def _take_weight(layer: Any, axis: int, keep: Tensor) -> None:
    """Leave a layer some of its outputs (axis 0) or inputs (axis 1), in place."""
    if isinstance(layer, QuantLayer) and layer.weight_quantizer.packable:
        terms = tuple(
            replace(
                term,
                bits=term.bits.index_select(axis + 1, keep),
                scale=term.scale[keep] if axis == 0 and term.scale.numel() > 1 else term.scale,
            )
            for term in weight_planes(layer).terms
        )
        quantizer: nn.Module = FixedPlanes(Planes(terms)).train(layer.weight_quantizer.training)
        layer.weight_quantizer = quantizer  # type: ignore[assignment]
    layer.weight = _part(layer.weight, keep, axis)
    linear = isinstance(layer, nn.Linear)
    name = ("out_features", "in_features")[axis] if linear else ("out_channels", "in_channels")[axis]
    setattr(layer, name, len(keep))
    if isinstance(layer, QuantLayer):
        outputs, inputs, input_axis = layer._channels
        layer._channels = (len(keep), inputs, input_axis) if axis == 0 else (outputs, len(keep), input_axis)


def _tensors_by_channel(module: nn.Module, channels: int) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a module's own parameters and buffers that hold a number for each channel."""
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if channels > 1 and tensor.numel() == channels == max(tensor.shape, default=0):
            yield name, tensor


def _take_channels(module: Any, channels: int, keep: Tensor) -> None:
    """Leave a module between two layers, a batch norm for instance, some of its channels, in place."""
    for name, tensor in list(_tensors_by_channel(module, channels)):
        axis = list(tensor.shape).index(channels)
        part = _part(tensor, keep, axis) if isinstance(tensor, nn.Parameter) else tensor.index_select(axis, keep)
        setattr(module, name, part)
    for name in ("num_features", "num_parameters"):
        if getattr(module, name, None) == channels:
            setattr(module, name, len(keep))


def _take_quantizer(reader: QuantLayer, channels: int, keep: Tensor) -> None:
    """Leave the input quantizer of a reader some of its channels, in place."""
    if not reader.input_quantizer.channelwise:
        return
    quantizer: Any = copy.deepcopy(reader.input_quantizer)
    _take_channels(quantizer, channels, keep)
    reader.input_quantizer = quantizer
