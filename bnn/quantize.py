"""bnn.quantize: any PyTorch model becomes a quantized one by exchange of its layers."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from bnn.data_flow import DataFlow, data_flow
from bnn.layers import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantEmbedding,
    QuantLinear,
)
from bnn.layers.base import QuantizerFactory, QuantLayer
from bnn.quantizers.base import FullPrecision


class Rule(TypedDict, total=False):
    """What a rule of `quantize` may say of the layers that its pattern matches; the rest stays as it is for all."""

    weight_quantizer: QuantizerFactory
    input_quantizer: QuantizerFactory
    pad_value: float
    input_scale: bool


_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
_QUANTIZERS = frozenset({"weight_quantizer", "input_quantizer"})

# torch's class: ours, the arguments that both have, the options that ours takes.
_KINDS: dict[type[nn.Module], tuple[Callable[..., nn.Module], tuple[str, ...], frozenset[str]]] = {
    nn.Conv1d: (QuantConv1d, _CONV, frozenset(Rule.__annotations__)),
    nn.Conv2d: (QuantConv2d, _CONV, frozenset(Rule.__annotations__)),
    nn.Conv3d: (QuantConv3d, _CONV, frozenset(Rule.__annotations__)),
    nn.ConvTranspose1d: (QuantConvTranspose1d, (*_CONV, "output_padding"), _QUANTIZERS),
    nn.ConvTranspose2d: (QuantConvTranspose2d, (*_CONV, "output_padding"), _QUANTIZERS),
    nn.ConvTranspose3d: (QuantConvTranspose3d, (*_CONV, "output_padding"), _QUANTIZERS),
    nn.Linear: (QuantLinear, ("in_features", "out_features"), _QUANTIZERS | {"input_scale"}),
    nn.Embedding: (QuantEmbedding, ("num_embeddings", "embedding_dim", "padding_idx"), frozenset({"weight_quantizer"})),
}
# What counts as a layer. Those that are neither of _KINDS exactly nor ours have no layer of ours that stands for them,
# or their forward reads weights past the layers that hold them.
_WITH_WEIGHTS = (
    *_KINDS,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.Bilinear,
    nn.EmbeddingBag,
)
_UNKNOWN = DataFlow(frozenset(), frozenset(), frozenset())
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def quantize(
    model: nn.Module,
    *,
    weight_quantizer: QuantizerFactory,
    input_quantizer: QuantizerFactory = FullPrecision,
    skip: Iterable[str] = ("first", "last"),
    rules: Mapping[str, Rule | None] | None = None,
    pad_value: float = 0.0,
    input_scale: bool = False,
    replace: Mapping[type[nn.Module], Callable[[], nn.Module]] | None = None,
    share_parameters: bool = False,
    example_input: Tensor | tuple[Any, ...] | None = None,
) -> nn.Module:
    """Return a new model with every Conv and ConvTranspose (1d, 2d, 3d), Linear and Embedding quantized; `model` stays.

    Weights and biases are kept as the latent initial values; everything else of the model is copied. Layers that are
    quantized already stay as they are.

    weight_quantizer, input_quantizer: factories, one instance is made for each layer.
    skip: what stays float: "first" (a layer that data reaches through no other one), "last" (one with none behind), or
        glob patterns of dotted paths, like "*.downsample.0" or "features.[0-3]". A skipped module is skipped with all
        that is in it.
    rules: glob pattern, "first" or "last" -> options for those layers instead of the general ones, as a dict of
        weight_quantizer, input_quantizer, pad_value, input_scale; or None: stays float. All rules that match apply, in
        order, the last one wins. `skip` goes before rules: for 8 bits in the last layer, leave "last" out of skip and
        give it a rule.
    pad_value, input_scale: see QuantConv2d; for the layers that have them.
    replace: class of module -> factory; exchanges for instance ReLU by Hardtanh where inputs become signs.
    share_parameters: the new model holds the very Parameter objects of `model`, so that an optimizer stays valid and
        no memory is needed twice; training one model then trains both. By default they are copies.
    example_input: a tensor or a tuple of arguments, needed only if torch.fx cannot trace the model.

    Raises ValueError, with dotted paths, on what cannot be quantized or would be quantized without effect (subclasses
    of the layers above, attention, recurrent layers, padding modes, hooks), on a pattern that matches nothing and on
    unknown options. Warns (UserWarning) of layers whose input cannot be negative and whose quantizer tells no positive
    values apart: behind a ReLU all signs are +1.
    """
    skip = tuple([skip] if isinstance(skip, str) else skip)
    rules = {pattern: None if rule is None else dict(rule) for pattern, rule in (rules or {}).items()}  # type: ignore[misc]
    general: dict[str, Any] = {
        "weight_quantizer": weight_quantizer,
        "input_quantizer": input_quantizer,
        "pad_value": pad_value,
        "input_scale": input_scale,
    }
    _check_rules(rules)
    model = _copied(model, share_parameters)
    _check_patterns([*skip, *rules], [name for _, names in _paths(model) for name in names])
    model = _replaced(model, replace or {}, skip)
    paths = _paths(model)
    layers = {names[0]: module for module, names in paths if isinstance(module, _WITH_WEIGHTS)}
    flow = _flow(model, layers, {*skip, *rules} & {"first", "last"}, example_input)
    exchanged: dict[int, nn.Module] = {}
    for module, names in paths:
        if any(_matches(pattern, names, flow, within=True) for pattern in skip):
            continue
        options: dict[str, Any] | None = dict(general)
        for pattern, rule in rules.items():
            if _matches(pattern, names, flow, within=rule is None):
                options = None if rule is None else {**(options or general), **rule}
        if options is not None and type(module) in _KINDS:
            exchanged[id(module)] = _quantized(names[0], module, options)
        elif options is not None and isinstance(module, _WITH_WEIGHTS) and not isinstance(module, QuantLayer):
            raise ValueError(f"{names[0]}: {_why_not(module)}; put it into skip to leave it as it is")
    _warn_of_blind_layers(flow, {names[0]: exchanged[id(m)] for m, names in paths if id(m) in exchanged})
    return _exchange(model, exchanged)


# -- the policy --------------------------------------------------------------------------------------------------------


def _check_rules(rules: Mapping[str, Any]) -> None:
    for pattern, rule in rules.items():
        wrong = set(rule or {}) - set(Rule.__annotations__)
        if wrong:
            raise ValueError(
                f"rule {pattern!r}: unknown option {min(wrong)!r}; options are {', '.join(Rule.__annotations__)}"
            )


def _paths(model: nn.Module) -> list[tuple[nn.Module, list[str]]]:
    """Return each module once, with all its dotted paths, in the order of definition."""
    found: dict[int, tuple[nn.Module, list[str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(id(module), (module, []))[1].append(name)
    return list(found.values())


def _flow(
    model: nn.Module, layers: Mapping[str, nn.Module], asked: set[str], example: Tensor | tuple[Any, ...] | None
) -> DataFlow:
    try:
        return data_flow(model, layers, example)
    except ValueError:
        if asked:
            raise
        return _UNKNOWN


def _check_patterns(patterns: Iterable[str], names: list[str]) -> None:
    for pattern in patterns:
        if pattern not in ("first", "last") and not any(fnmatchcase(name, pattern) for name in names):
            listed = ", ".join(name for name in names if name)
            raise ValueError(f"pattern {pattern!r} matches no module; there are: {listed}")


def _matches(pattern: str, names: Iterable[str], flow: DataFlow, within: bool) -> bool:
    """Say whether a pattern is of a module or, with `within`, of one that holds it."""
    if pattern in ("first", "last"):
        return not (flow.first if pattern == "first" else flow.last).isdisjoint(names)
    for name in names:
        parts = name.split(".")
        if any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1 if within else len(parts), len(parts) + 1)):
            return True
    return False


# -- the exchange ------------------------------------------------------------------------------------------------------


def _copied(model: nn.Module, share_parameters: bool) -> nn.Module:
    kept = {id(p): p for p in model.parameters()} if share_parameters else {}
    return copy.deepcopy(model, kept)


def _replaced(
    model: nn.Module, replace: Mapping[type[nn.Module], Callable[[], nn.Module]], skip: Iterable[str]
) -> nn.Module:
    fresh = {
        id(module): replace[type(module)]()
        for module, names in _paths(model)
        if type(module) in replace and not any(_matches(pattern, names, _UNKNOWN, within=True) for pattern in skip)
    }
    return _exchange(model, fresh)


def _why_not(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        return f"{kind} reads weights past its layers, they would stay float"
    if isinstance(module, tuple(_KINDS)):
        base = next(base.__name__ for base in type(module).__mro__ if base in _KINDS)
        return f"{kind} is a {base} of its own kind, which QuantLayers do not know"
    return f"{kind} cannot be quantized"


def _quantized(path: str, module: Any, general: Mapping[str, Any]) -> nn.Module:
    kind, arguments, options = _KINDS[type(module)]
    if isinstance(module, nn.Embedding):
        if module.max_norm is not None or module.sparse or module.scale_grad_by_freq:
            raise ValueError(f"{path}: an Embedding with max_norm, sparse or scale_grad_by_freq cannot be quantized")
    elif getattr(module, "padding_mode", "zeros") != "zeros" and any(module._reversed_padding_repeated_twice):
        raise ValueError(
            f"{path}: padding mode {module.padding_mode!r} cannot be quantized: pad in a module of its own"
        )
    if "weight" not in module._parameters or any(getattr(module, hooks, None) for hooks in _HOOKS):
        raise ValueError(
            f"{path}: its hooks or reparametrized weight (weight norm, pruning) would be lost: remove them first"
        )
    given = {name: getattr(module, name) for name in arguments}
    if not isinstance(module, nn.Embedding):
        given["bias"] = module.bias is not None
    given |= {name: value for name, value in general.items() if name in options}
    try:
        layer: Any = kind(**given, device="meta")
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from error
    layer.weight = module.weight
    if given.get("bias"):
        layer.bias = module.bias
    for quantizer in (layer.weight_quantizer, layer.input_quantizer):
        quantizer.to(module.weight.device, module.weight.dtype)
    return layer.train(module.training)


def _exchange(model: nn.Module, exchanged: Mapping[int, nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in exchanged:
                parent._modules[name] = exchanged[id(child)].train(child.training)
    return exchanged.get(id(model), model)


def _warn_of_blind_layers(flow: DataFlow, layers: Mapping[str, nn.Module]) -> None:
    """Warn of layers whose input quantizer gives one value for all inputs that can come."""
    blind = []
    for path in sorted(flow.not_negative & set(layers)):
        layer: Any = layers[path]
        quantizer = layer.input_quantizer
        if not quantizer.packable:
            continue
        channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        probe = torch.linspace(0, 4, 9).reshape(-1, 1).expand(-1, channels).to(layer.weight)
        with torch.no_grad():
            values = copy.deepcopy(quantizer).eval()(probe)
        if (values == values[:1]).all():
            blind.append(path)
    if blind:
        warnings.warn(
            f"the input of {', '.join(blind)} is never negative (a ReLU?), so its quantizer gives one value for all of "
            "it; exchange the activation, for instance with replace={nn.ReLU: nn.Hardtanh}",
            stacklevel=3,
        )
