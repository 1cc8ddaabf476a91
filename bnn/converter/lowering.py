"""From a chain of modules to the steps of a packed plan, fused where integers allow it.

Between a binary layer and the next input quantizer only monotone arithmetic by channel and max pooling may stand for
the fusion to integer thresholds; anything else keeps the layer's float output. No method is known by name here: a
quantizer is what its planes say.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from bnn_kernels import StepSpec
from bnn_kernels.dense_bits import to_dense_bits
from torch import Tensor, nn

from bnn.converter.chain import Link
from bnn.converter.errors import ConversionError
from bnn.converter.thresholds import LevelTable, float_thresholds, input_term, integer_thresholds
from bnn.layers import QuantConv2d, QuantLinear
from bnn.layers.base import QuantLayer, output_scale, weight_planes
from bnn.planes import Term

_NOTHING = (nn.Dropout, nn.Dropout2d, nn.Identity)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# Rising functions of one number, so they move no level past another.
_RISING = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
_SUPPORTED = (
    "QuantConv2d, QuantLinear, Conv2d, Linear, BatchNorm1d/2d, ReLU, ReLU6, Hardtanh, MaxPool2d, AvgPool2d, "
    "AdaptiveAvgPool2d(1), Flatten, Dropout, Identity"
)


def _numpy(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().to(torch.float32).numpy())


def _two(value: Any) -> list[int]:
    return [int(value), int(value)] if isinstance(value, int) else [int(v) for v in value]


def dense(term: Term) -> np.ndarray:
    """Return a weight term's planes as dense bits, uint8 (P, bytes)."""
    bits = term.bits.cpu().numpy().astype(np.uint8)
    codes = np.zeros(bits.shape[1:], np.uint8)
    for p in range(len(bits)):
        codes |= bits[p] << p
    return to_dense_bits(codes, len(bits))


@dataclass
class Lowering:
    """Walks a chain and collects steps; `register` is the value that the next step reads, `input_shape` its start."""

    links: list[Link]
    input_shape: tuple[int, ...]
    steps: list[StepSpec] = field(default_factory=list)
    register: str = "x"
    # The register of the last float value: the input of a layer with an input scale.
    floats: str = "x"

    def run(self) -> list[StepSpec]:
        """Return the steps of the whole chain."""
        at = 0
        while at < len(self.links):
            at = self._lower(at)
        if not self.steps:
            raise ConversionError("nothing is left of the model: it has only layers that do nothing in evaluation")
        return self.steps

    def _emit(
        self, op: str, source: str, attrs: dict[str, Any] | None = None, tensors: dict[str, np.ndarray] | None = None,
        inputs: list[str] | None = None,
    ) -> None:  # fmt: skip
        output = f"r{len(self.steps)}"
        self.steps.append(StepSpec(op, inputs or [self.register], output, attrs or {}, tensors or {}, source))
        self.register = output

    def _shape_before(self, at: int) -> tuple[int, ...]:
        return self.links[at - 1].shape if at else self.input_shape

    def _lower(self, at: int) -> int:
        """Lower the link at this place and those it fuses with; return the place of the next one."""
        link = self.links[at]
        module, path = link.module, link.path
        if isinstance(module, _NOTHING):
            return at + 1
        if isinstance(module, QuantConv2d | QuantLinear):
            return self._quantized(at, module)
        if isinstance(module, nn.Conv2d):
            self._float_layer(path, module, self._conv_attrs(path, module, 0.0), _numpy(module.weight))
        elif isinstance(module, nn.Linear):
            self._float_layer(path, module, {"shape": list(module.weight.shape)}, _numpy(module.weight))
        elif isinstance(module, _NORMS):
            self._norm(path, module)
        elif isinstance(module, nn.ReLU | nn.ReLU6 | nn.Hardtanh):
            self._clamp(path, module)
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            op = "max_pool" if isinstance(module, nn.MaxPool2d) else "avg_pool"
            self._emit(op, path, self._pool_attrs(path, module, self._shape_before(at)))
        elif isinstance(module, nn.Flatten):
            self._check_flatten(path, module)
            self._emit("flatten", path)
        else:
            raise ConversionError(
                f"{path}: {type(module).__name__} cannot be converted. Supported are {_SUPPORTED}; replace the module, "
                "or convert the part of the network before it"
            )
        return at + 1

    # -- float layers -----------------------------------------------------------------------------------------------

    def _conv_attrs(self, path: str, module: nn.Conv2d, pad: float) -> dict[str, Any]:
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise ConversionError(
                f"{path}: padding must be given in numbers and mode 'zeros', "
                f"got {module.padding!r}, {module.padding_mode!r}"
            )
        return {
            "shape": list(module.weight.shape),
            "stride": _two(module.stride),
            "padding": _two(module.padding),
            "dilation": _two(module.dilation),
            "groups": module.groups,
            "pad_value": pad,
        }

    def _float_layer(self, path: str, module: Any, attrs: dict[str, Any], weight: np.ndarray) -> None:
        tensors = {"weight": weight}
        if module.bias is not None:
            tensors["bias"] = _numpy(module.bias)
        self._emit("float_conv" if weight.ndim == 4 else "float_linear", path, attrs, tensors)

    def _norm(self, path: str, module: Any) -> None:
        if module.running_mean is None:
            raise ConversionError(f"{path}: batch norm without running statistics depends on the batch; track them")
        scale = (module.running_var + module.eps).rsqrt()
        if module.weight is not None:
            scale = scale * module.weight
        shift = -module.running_mean * scale
        if module.bias is not None:
            shift = shift + module.bias
        self._emit("affine", path, {}, {"scale": _numpy(scale), "shift": _numpy(shift)})

    def _clamp(self, path: str, module: nn.Module) -> None:
        if isinstance(module, nn.Hardtanh):  # ReLU6 is one
            self._emit("clamp", path, {"low": float(module.min_val), "high": float(module.max_val)})
        else:
            self._emit("clamp", path, {"low": 0.0})

    @staticmethod
    def _pool_attrs(path: str, module: Any, shape: tuple[int, ...]) -> dict[str, Any]:
        if isinstance(module, nn.AdaptiveAvgPool2d):
            if module.output_size not in (1, (1, 1)):
                raise ConversionError(f"{path}: AdaptiveAvgPool2d to 1x1 can be converted, not to {module.output_size}")
            return {"kernel": list(shape[1:]), "stride": [1, 1], "padding": [0, 0]}
        if module.ceil_mode:
            raise ConversionError(f"{path}: pooling with ceil_mode=True cannot be converted; pad explicitly")
        if isinstance(module, nn.MaxPool2d) and (_two(module.dilation) != [1, 1] or module.return_indices):
            raise ConversionError(f"{path}: max pooling with dilation or indices cannot be converted")
        if isinstance(module, nn.AvgPool2d):
            padded = any(_two(module.padding))
            if module.divisor_override is not None or (padded and not module.count_include_pad):
                raise ConversionError(f"{path}: average pooling must count its padding and divide by the window")
        return {"kernel": _two(module.kernel_size), "stride": _two(module.stride), "padding": _two(module.padding)}

    @staticmethod
    def _check_flatten(path: str, module: nn.Flatten) -> None:
        if (module.start_dim, module.end_dim) != (1, -1):
            raise ConversionError(f"{path}: Flatten() of everything but the batch can be converted, not {module}")

    # -- quantized layers -------------------------------------------------------------------------------------------

    def _quantized(self, at: int, layer: QuantConv2d | QuantLinear) -> int:
        path = self.links[at].path
        if not layer.input_quantizer.packable:
            self._float_input(path, layer)
            return at + 1
        given = input_term(layer.input_quantizer, torch.zeros(1, 1), path)
        if not self._is_bits():
            table = LevelTable.of(given)
            attrs = {"signed": table.signed, "multipliers": list(table.multipliers)}
            tensors = {"thresholds": float_thresholds(layer.input_quantizer, table, path), "codes": table.codes}
            self.floats = self.register
            self._emit("pack", f"{path} input", attrs, tensors)
        if not layer.weight_quantizer.packable:
            self._emit("unpack", path, {"scale": float(given.scale)})
            if isinstance(layer, QuantLinear):
                self._emit("flatten", path)  # a fused map may have reached this layer as it was
            self._float_input(path, layer)
            return at + 1
        return self._binary(at, layer, given)

    def _is_bits(self) -> bool:
        return (bool(self.steps) and self.steps[-1].op in ("pack", "threshold", "pool_bits")) or (
            bool(self.steps) and self.steps[-1].attrs.get("output") == "bits"
        )

    def _float_input(self, path: str, layer: QuantConv2d | QuantLinear) -> None:
        if isinstance(layer, QuantConv2d):
            attrs = self._conv_attrs(path, layer, layer.pad_value)
        else:
            attrs = {"shape": list(layer.weight.shape)}
        if not layer.weight_quantizer.packable:
            self._float_layer(path, layer, attrs, _numpy(layer.weight))
            return
        terms, tensors = self._weight_terms(layer)
        for i, term in enumerate(weight_planes(layer).terms):
            tensors[f"scale.{i}"] = _numpy(term.scale.expand(layer.weight.shape[0]))
        if layer.bias is not None:
            tensors["bias"] = _numpy(layer.bias)
        op = "float_conv" if layer.weight.ndim == 4 else "float_linear"
        self._emit(op, path, {**attrs, "terms": terms}, tensors)

    @staticmethod
    def _weight_terms(layer: QuantLayer) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        planes = weight_planes(layer).terms
        terms = [{"multipliers": list(term.multipliers), "signed": term.signed} for term in planes]
        return terms, {f"bits.{i}": dense(term) for i, term in enumerate(planes)}

    def _binary(self, at: int, layer: QuantConv2d | QuantLinear, given: Term) -> int:
        path = self.links[at].path
        planes = weight_planes(layer).terms
        terms, tensors = self._weight_terms(layer)
        attrs: dict[str, Any] = {"shape": list(layer.weight.shape), "terms": terms}
        op = "binary_linear"
        if isinstance(layer, QuantConv2d):
            op = "binary_conv"
            attrs |= self._conv_attrs(path, layer, 0.0)
            attrs.pop("pad_value")
            try:
                attrs["pad_level"] = int(layer.pad_level(given))
            except ValueError as error:
                raise ConversionError(f"{path}: {error}") from None
        end = self._fusable(at, layer) if len(planes) == 1 else None
        if end is not None:
            self._fused(at, end, layer, given, planes[0], op, attrs, tensors)
            return end
        filters = layer.weight.shape[0]
        for i, term in enumerate(planes):
            scale = output_scale(given, term, layer.weight.ndim).reshape(-1)
            tensors[f"scale.{i}"] = _numpy(scale.expand(filters))
        if layer.bias is not None:
            tensors["bias"] = _numpy(layer.bias)
        attrs["output"] = "float"
        inputs = [self.register]
        if layer.input_scale:
            attrs["input_scale"] = True
            inputs.append(self.floats)
        self._emit(op, path, attrs, tensors, inputs)
        return at + 1

    # -- fusion to integer thresholds -------------------------------------------------------------------------------

    def _fusable(self, at: int, layer: QuantLayer) -> int | None:
        """Return the place of the next quantized layer if all that lies between is monotone by channel, else None."""
        if layer.input_scale:
            return None
        for place in range(at + 1, len(self.links)):
            module = self.links[place].module
            if isinstance(module, QuantConv2d | QuantLinear):
                # Only the input scale needs the floats that a fusion would never compute.
                return place if module.input_quantizer.packable and not module.input_scale else None
            one_pixel = all(n == 1 for n in self._shape_before(place)[1:])
            if isinstance(module, nn.BatchNorm1d) and self._flattened(at, place) and not one_pixel:
                return None
            if not isinstance(module, (*_NOTHING, *_NORMS, *_RISING, nn.MaxPool2d, nn.Flatten)):
                return None
        return None

    def _flattened(self, at: int, place: int) -> bool:
        """Whether a map with more than one pixel was flattened between two places: its channels are then features."""
        flattens = [p for p in range(at + 1, place) if isinstance(self.links[p].module, nn.Flatten)]
        return any(int(np.prod(self._shape_before(p)[1:])) > 1 for p in flattens)

    def _fused(
        self, at: int, end: int, layer: QuantConv2d | QuantLinear, given: Term, weight: Term, op: str,
        attrs: dict[str, Any], tensors: dict[str, np.ndarray],
    ) -> None:  # fmt: skip
        path = self.links[at].path
        following = self.links[end].module
        assert isinstance(following, QuantLayer)
        source = f"{self.links[end].path} input"
        table = LevelTable.of(input_term(following.input_quantizer, torch.zeros(1, 1), self.links[end].path))
        largest = given.max_level * weight.max_level * layer.weight[0].numel()
        if largest > np.iinfo(np.int32).max:
            raise ConversionError(f"{path}: sums of up to {largest} do not fit 32 bits; use fewer bits or inputs")
        between = self.links[at + 1 : end]
        pools = [i for i, link in enumerate(between) if isinstance(link.module, nn.MaxPool2d)]

        def apply(sums: Tensor, first: int, last: int, start: bool) -> Tensor:
            """Run links first..last of `between` on (T, channels) numbers; `start`: they are the layer's sums."""
            y = sums
            if start:
                y = sums.to(torch.float32) * output_scale(given, weight, 2)
                if layer.bias is not None:
                    y = y + layer.bias
            for link in between[first:last]:
                if isinstance(link.module, _RISING):
                    y = link.module(y)
                elif isinstance(link.module, nn.BatchNorm2d):
                    y = link.module(y[..., None, None])[..., 0, 0]
                elif isinstance(link.module, nn.BatchNorm1d):
                    y = link.module(y)
            return y

        def levels(sums: Tensor) -> Tensor:
            return following.input_quantizer.planes(apply(sums, 0, len(between), True)).terms[0].levels()

        channels = layer.weight.shape[0]
        ends = torch.tensor([[-float(largest)], [float(largest)]]).expand(2, channels)
        t, flip = integer_thresholds(levels, channels, largest, table)
        is_sign = table.multipliers == (1,) and table.signed
        thresholds = {"thresholds": t, "flip": flip, "codes": table.codes}
        planes = {"signed": table.signed, "multipliers": list(table.multipliers)}
        if not pools or is_sign:
            fused = {**attrs, **planes, "output": "bits"}
            self._emit(op, f"{path} bits" if pools else source, fused, {**tensors, **thresholds})
            for i in pools:
                # The maximum passes as a maximum of levels if what comes after it rises, else as a minimum.
                low, high = self._after(apply, i + 1, len(between), channels)
                self._pool(at, i, "pool_bits", high >= low, source if i == pools[-1] else f"{path} bits")
            return
        self._emit(op, f"{path} sums", {**attrs, "output": "int"}, tensors)
        for i in pools:
            # The maximum passes as a maximum of sums if what comes before it rises, else as a minimum.
            low, high = apply(ends, 0, i, True)
            self._pool(at, i, "pool_int", high >= low, f"{path} sums")
        self._emit("threshold", source, planes, thresholds)

    @staticmethod
    def _after(apply: Any, first: int, last: int, channels: int) -> Tensor:
        largest = torch.finfo(torch.float32).max / 4
        return apply(torch.tensor([[-largest], [largest]]).expand(2, channels), first, last, False)

    def _pool(self, at: int, i: int, op: str, rising: Tensor, source: str) -> None:
        link = self.links[at + 1 + i]
        attrs = self._pool_attrs(link.path, link.module, self._shape_before(at + 1 + i))
        self._emit(op, source, attrs, {"rising": rising.numpy().copy()})
