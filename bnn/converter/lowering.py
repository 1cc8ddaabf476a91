"""From a chain of modules to the steps of a packed plan, fused where integers allow it.

Where only monotone arithmetic by channel and max pooling lie before the next input quantizer, all of it becomes
thresholds: on a binary layer's integer sums, or on whatever floats enter. No method is known by name here: a quantizer
is what its planes say.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from bnn_kernels import StepSpec
from bnn_kernels.dense_bits import to_dense_bits
from bnn_kernels.threshold_code import compress
from torch import Tensor, nn

from bnn.converter.chain import Link
from bnn.converter.errors import ConversionError
from bnn.converter.fusion import LARGEST_FLOAT, NORMS, NOTHING, MonotoneRun
from bnn.converter.thresholds import float_thresholds, input_term, integer_thresholds
from bnn.layers import QuantConv2d, QuantLinear
from bnn.layers.base import QuantLayer, output_scale, weight_planes
from bnn.planes import Term

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
        if isinstance(module, NOTHING):
            return at + 1
        if isinstance(module, QuantConv2d | QuantLinear):
            return self._quantized(at, module)
        if isinstance(module, (*NORMS, nn.ReLU, nn.Hardtanh, nn.MaxPool2d)):  # ReLU6 is a Hardtanh
            run = MonotoneRun.starting(self.links, at, self._shape_before(at))
            if run is not None and (not run.pools or run.table.is_sign):
                return self._float_run(at, run)
        if isinstance(module, nn.Conv2d):
            self._float_layer(path, module, self._conv_attrs(path, module, 0.0), _numpy(module.weight))
        elif isinstance(module, nn.Linear):
            self._float_layer(path, module, {"shape": list(module.weight.shape)}, _numpy(module.weight))
        elif isinstance(module, NORMS):
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
            self._float_run(at, MonotoneRun([], self.links[at], self._shape_before(at)[0]))
        if not layer.weight_quantizer.packable:
            self._emit("unpack", path, {"scale": float(given.scale)})
            if isinstance(layer, QuantLinear):
                self._emit("flatten", path)  # a fused map may have reached this layer as it was
            self._float_input(path, layer)
            return at + 1
        return self._binary(at, layer, given)

    def _is_bits(self) -> bool:
        if not self.steps:
            return False
        last = self.steps[-1]
        return last.op in ("pack", "threshold", "pool_bits") or last.attrs.get("output") == "bits"

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
        run = None if layer.input_scale else MonotoneRun.starting(self.links, at + 1, self.links[at].shape)
        if run is not None and len(planes) == 1:
            return self._integer_run(at, run, layer, given, planes[0], op, attrs, tensors)
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

    # -- fusion to thresholds ---------------------------------------------------------------------------------------

    def _float_run(self, at: int, run: MonotoneRun) -> int:
        """Pack the floats in the register; links[at] is the first of the run."""
        table = run.table
        self.floats = self.register
        t, flip = float_thresholds(run.levels, run.channels, LARGEST_FLOAT, table)
        if (t == t[:, :1]).all() and (flip == flip[0]).all():  # the same in every channel
            t, flip = t[:, :1].copy(), flip[:1].copy()
        attrs = {"signed": table.signed, "multipliers": list(table.multipliers)}
        tensors = {"thresholds": t, "flip": flip, "codes": table.codes}
        pools = run.pools
        self._emit("pack", f"{run.following.path} levels" if pools else run.source, attrs, tensors)
        self._pool_levels(at, run)
        return at + len(run.links)

    def _integer_run(
        self, at: int, run: MonotoneRun, layer: QuantConv2d | QuantLinear, given: Term, weight: Term, op: str,
        attrs: dict[str, Any], tensors: dict[str, np.ndarray],
    ) -> int:  # fmt: skip
        """Put the sums of the binary layer links[at] through thresholds."""
        path = self.links[at].path
        table = run.table
        largest = given.max_level * weight.max_level * layer.weight[0].numel()
        if largest > np.iinfo(np.int32).max:
            raise ConversionError(f"{path}: sums of up to {largest} do not fit 32 bits; use fewer bits or inputs")

        def output(sums: Tensor) -> Tensor:
            y = sums.to(torch.float32) * output_scale(given, weight, 2)
            return y if layer.bias is None else y + layer.bias

        t, flip = integer_thresholds(lambda sums: run.levels(output(sums)), run.channels, largest, table)
        thresholds = {**compress(t), "flip": flip, "codes": table.codes}
        planes = {"signed": table.signed, "multipliers": list(table.multipliers)}
        pools = run.pools
        if not pools or table.is_sign:
            source = f"{run.following.path} levels" if pools else run.source
            self._emit(op, source, {**attrs, **planes, "output": "bits"}, {**tensors, **thresholds})
            self._pool_levels(at + 1, run)
        else:
            self._emit(op, f"{path} sums", {**attrs, "output": "int"}, tensors)
            for i in pools:
                # The maximum passes as a maximum of sums if what comes before it rises, else as a minimum.
                self._pool(at + 1 + i, "pool_int", run.rises(0, i, output), f"{path} sums")
            self._emit("threshold", run.source, planes, thresholds)
        return at + 1 + len(run.links)

    def _pool_levels(self, at: int, run: MonotoneRun) -> None:
        """Pool the levels in the register as the run, which starts at links[at], pools its floats."""
        for i in run.pools:
            # The maximum passes as a maximum of levels if what comes after it rises, else as a minimum.
            source = run.source if i == run.pools[-1] else f"{run.following.path} levels"
            self._pool(at + i, "pool_bits", run.rises(i + 1, None), source)

    def _pool(self, at: int, op: str, rising: np.ndarray, source: str) -> None:
        link = self.links[at]
        self._emit(op, source, self._pool_attrs(link.path, link.module, self._shape_before(at)), {"rising": rising})
