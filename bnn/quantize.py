"""bnn.quantize: any PyTorch model becomes a quantized one by exchange of its layers."""

import copy
import glob
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from bnn import presets
from bnn.data_flow import DataFlow, data_flow
from bnn.layers import (
    PixelNormalize,
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
from bnn.model_copy import copied
from bnn.pixels import Pixels, eight_bits, pixel_levels
from bnn.quantize_stem import check_stem, stem_path, take_deviations
from bnn.quantizers.base import FullPrecision

# A type of module, or a glob pattern of dotted paths, "first" or "last".
Pattern = str | type[nn.Module]


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
    preset: str | None = None,
    *,
    bits: int | None = None,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    weight_quantizer: QuantizerFactory | None = None,
    input_quantizer: QuantizerFactory | None = None,
    skip: Pattern | Iterable[Pattern] = ("first", "last"),
    rules: Mapping[Pattern, Rule | str | None] | None = None,
    pad_value: float = 0.0,
    input_scale: bool | None = None,
    replace: Mapping[type[nn.Module], Callable[[], nn.Module]] | None = None,
    share_parameters: bool = False,
    example_input: Tensor | tuple[Any, ...] | None = None,
    stem: Literal["fp32", "int8"] | None = None,
    pixels: Pixels | None = None,
) -> nn.Module:
    """Return a new model with every Conv and ConvTranspose (1d, 2d, 3d), Linear and Embedding quantized; `model` stays.

    Weights and biases are kept as the latent initial values; everything else of the model is copied. Layers that are
    quantized already stay as they are.

        bnn.quantize(model, "xnor")
        bnn.calibrate(bnn.quantize(model, bits=4), train_loader)
        bnn.quantize(model, weight_quantizer=XnorWeight, input_quantizer=SteSign, skip=[nn.Linear])

    preset: the name of a file of configs/quantizer: its quantizers and whether it has input_scale.
    bits: of weights and inputs, 1 to 8: 1 is XNOR-Net, 2 to 8 are LSQ's, unsigned for inputs that cannot be negative.
        weight_bits, activation_bits: the same apart; 32, or not given, stays float.
    weight_quantizer, input_quantizer: factories, one instance is made for each layer; inputs stay float without one.
    skip: what stays float: "first" (a layer that data reaches through no other one), "last" (one with none behind),
        glob patterns of dotted paths, like "*.downsample.0" or "features.[0-3]", or types of modules, like nn.Linear.
        A skipped module is skipped with all that is in it.
    rules: glob pattern, type, "first" or "last" -> options for those layers instead of the general ones, as a dict of
        weight_quantizer, input_quantizer, pad_value, input_scale, or the name of a preset; or None: stays float. All
        rules that match apply, in order, the last one wins. `skip` goes before rules: for 8 bits in the last layer,
        leave "last" out of skip and give it a rule.
    pad_value, input_scale: see QuantConv2d; for the layers that have them.
    replace: class of module -> factory; exchanges for instance ReLU by Hardtanh where inputs become signs.
    share_parameters: the new model holds the very Parameter objects of `model`, so that an optimizer stays valid and
        no memory is needed twice; training one model then trains both. By default they are copies.
    example_input: a tensor or a tuple of arguments, needed only if torch.fx cannot trace the model.
    stem, pixels: let a model of normalized images take pixels instead, uint8 or floats of the same values; pixels says
        how its images were normalized, `bnn.Pixels(mean, std)`. "fp32": PixelNormalize comes first. "int8": the first
        convolution, whatever skip and rules say, has 8-bit weights (LSQ, a step for each filter) on the levels of
        pixels, an exact integer layer when packed. Where deviations differ between channels its latent weights take
        that up, so that the model stays the same function but for the rounding of weights.

    Raises ValueError, with dotted paths, on what cannot be quantized or would be quantized without effect (subclasses
    of the layers above, attention, recurrent layers, padding modes, hooks), on a pattern or type that matches nothing,
    and on unknown presets and options; TypeError on arguments of a wrong type. Warns (UserWarning) of layers whose
    input cannot be negative and whose quantizer tells no positive values apart: behind a ReLU all signs are +1.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"bnn.quantize takes a model, got {type(model).__name__}")
    check_stem(stem, pixels)
    general = _general(preset, bits, weight_bits, activation_bits, weight_quantizer, input_quantizer)
    inputs = bits if activation_bits is None else activation_bits
    general |= {"pad_value": pad_value} | ({} if input_scale is None else {"input_scale": input_scale})
    rules_given = _checked_rules(rules or {})
    chosen = _checked_skip(skip)
    _check_lazy(model)
    model = _copied(model, share_parameters)
    by_path = _as_paths([*chosen, *rules_given], model)
    skipped = [path for pattern in chosen for path in by_path[pattern]]
    ruled = {path: rule for pattern, rule in rules_given.items() for path in by_path[pattern]}
    _check_patterns([*skipped, *ruled], [name for _, names in _paths(model) for name in names])
    model = _replaced(model, replace or {}, skipped)
    paths = _paths(model)
    layers = {names[0]: module for module, names in paths if isinstance(module, _WITH_WEIGHTS)}
    asked = {"first"} if stem == "int8" else set()
    flow = _flow(model, layers, asked | {*skipped, *ruled} & {"first", "last"}, example_input)
    exchanged: dict[int, nn.Module] = {}
    if stem == "int8" and pixels is not None:
        path = stem_path(model, layers, flow, example_input)
        given: Any = {"weight_quantizer": eight_bits(), "input_quantizer": pixel_levels(pixels)}
        exchanged[id(layers[path])] = first = _quantized(path, layers[path], given)
        take_deviations(path, first, pixels, share_parameters)
    for module, names in paths:
        if id(module) in exchanged:
            continue
        if any(_matches(pattern, names, flow, within=True) for pattern in skipped):
            continue
        options: dict[str, Any] | None = dict(general)
        if inputs is not None and inputs > 1 and flow.not_negative.intersection(names):
            options = general | {"input_quantizer": presets.inputs_of(inputs, signed=False)}
        for pattern, rule in ruled.items():
            if _matches(pattern, names, flow, within=rule is None):
                options = None if rule is None else {**(options or general), **rule}
        if options is not None and type(module) in _KINDS:
            exchanged[id(module)] = _quantized(names[0], module, options)
        elif options is not None and isinstance(module, _WITH_WEIGHTS) and not isinstance(module, QuantLayer):
            raise ValueError(f"{names[0]}: {_why_not(module)}; put it into skip to leave it as it is")
    _warn_of_blind_layers(flow, {names[0]: exchanged[id(m)] for m, names in paths if id(m) in exchanged})
    model = _exchange(model, exchanged)
    if pixels is None or stem == "int8":
        return model
    first = PixelNormalize(pixels.mean, pixels.std, pixels.max_value)
    whole = nn.Sequential(OrderedDict(pixels=first, network=model))
    whole.training = first.training = model.training  # and what is within stays as it is
    return whole


# -- the policy --------------------------------------------------------------------------------------------------------


def _general(
    preset: Any, bits: Any, weight_bits: Any, activation_bits: Any, weight_quantizer: Any, input_quantizer: Any
) -> dict[str, Any]:
    """Return the options for all layers of the one way in which they were given."""
    if preset is not None and not isinstance(preset, str):
        raise TypeError(
            f"the second argument is the name of a preset such as 'xnor', got {preset!r}: quantizers are passed as "
            "weight_quantizer=..., input_quantizer=..., numbers of bits as bits=..."
        )
    apart = weight_bits is not None or activation_bits is not None
    factories = weight_quantizer is not None or input_quantizer is not None
    ways = [preset is not None, bits is not None, apart, factories]
    if sum(ways) != 1:
        raise TypeError(
            "say with what to quantize in one way: a preset such as 'xnor', bits=..., weight_bits=... and "
            "activation_bits=..., or weight_quantizer=... and input_quantizer=...; "
            + ("got none of them" if not any(ways) else "got more than one of them")
        )
    if preset is not None:
        return presets.preset(preset)
    if bits is not None:
        return {
            "weight_quantizer": presets.weights_of(bits, "bits"),
            "input_quantizer": presets.inputs_of(bits, name="bits"),
        }
    if apart:
        return {
            "weight_quantizer": FullPrecision if weight_bits is None else presets.weights_of(weight_bits),
            "input_quantizer": FullPrecision if activation_bits is None else presets.inputs_of(activation_bits),
        }
    return {
        "weight_quantizer": FullPrecision if weight_quantizer is None else weight_quantizer,
        "input_quantizer": FullPrecision if input_quantizer is None else input_quantizer,
    }


def _checked_rules(rules: Any) -> dict[Pattern, Any]:
    """Return the rules as options or None by pattern; TypeError or ValueError for what is none."""
    if not isinstance(rules, Mapping):
        raise TypeError(f"rules must be a dict of pattern -> options, got {type(rules).__name__}")
    found: dict[Pattern, Any] = {}
    for pattern, rule in rules.items():
        _check_kind(pattern, "rules")
        if isinstance(rule, str):
            rule = presets.preset(rule)
        if rule is not None and not isinstance(rule, Mapping):
            raise TypeError(f"rule {pattern!r} must be a dict of options, a preset's name or None, got {rule!r}")
        wrong = set(rule or {}) - set(Rule.__annotations__)
        if wrong:
            raise ValueError(
                f"rule {pattern!r}: unknown option {min(wrong)!r}; options are {', '.join(Rule.__annotations__)}"
            )
        found[pattern] = None if rule is None else dict(rule)
    return found


def _checked_skip(skip: Any) -> list[Pattern]:
    if isinstance(skip, str | type):
        skip = [skip]
    if not isinstance(skip, Iterable) or isinstance(skip, nn.Module):
        raise TypeError(f"skip must be patterns and types of modules, () for none, got {skip!r}")
    skip = list(skip)
    for pattern in skip:
        _check_kind(pattern, "skip")
    return skip


def _check_kind(pattern: Any, where: str) -> None:
    is_type = isinstance(pattern, type) and issubclass(pattern, nn.Module)
    if not is_type and not isinstance(pattern, str):
        raise TypeError(
            f"{where} takes glob patterns of dotted paths, 'first', 'last' and types of modules such as nn.Linear, got "
            f"{pattern!r}"
        )


def _as_paths(patterns: Iterable[Pattern], model: nn.Module) -> dict[Pattern, list[str]]:
    """Return for each pattern itself, for each type the paths, as patterns, of the modules that are of it."""
    found: dict[Pattern, list[str]] = {}
    for pattern in patterns:
        if isinstance(pattern, str):
            found[pattern] = [pattern]
            continue
        kind = pattern
        found[kind] = [glob.escape(names[0]) for module, names in _paths(model) if isinstance(module, kind)]
        if not found[kind]:
            raise ValueError(f"{type(model).__name__} has no module of the type {kind.__name__}")
    return found


def _check_lazy(model: nn.Module) -> None:
    lazy = [path for path, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"{', '.join(lazy)} have no shape yet: run the model once, so that its lazy layers know their inputs"
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
    return copied(model, kept)


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
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return (
            f"{kind} cannot be quantized as a layer (its weights can, by torch.nn.utils.parametrize, see "
            "docs/conversion.md)"
        )
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
