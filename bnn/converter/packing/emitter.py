"""From a graph and its plan to the steps of a packed model."""

from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np
import torch
from bnn_kernels import StepSpec
from bnn_kernels.bits.threshold_storage import ThresholdArrays, compress
from bnn_kernels.model.program import as_spec_shape
from bnn_kernels.steps.binary import BinaryLayerFields
from bnn_kernels.steps.elementwise import Activation, Elementwise
from bnn_kernels.steps.elementwise import Combine as CombineStep
from bnn_kernels.steps.fields import Bool, StepFields, Uint8
from bnn_kernels.steps.finish import EpilogueFields
from bnn_kernels.steps.float import FloatLayerFields
from bnn_kernels.steps.pack import Pack, Unpack
from bnn_kernels.steps.pool import PoolBits, PoolInt
from bnn_kernels.steps.shape import Concat as ConcatStep
from bnn_kernels.steps.shape import Reshape
from bnn_kernels.steps.thresholds import Threshold

from bnn.converter.errors import ConversionError
from bnn.converter.graph.values import (
    BinaryLayer,
    Channelwise,
    Combine,
    Concat,
    Curve,
    FloatLayer,
    Input,
    LevelProduct,
    Levels,
    Moved,
    OwnStep,
    Pool,
    Unpacked,
    Value,
)
from bnn.converter.levels.table import values_by_channel, values_of_codes
from bnn.converter.packing.epilogue import EpilogueForm, fit, followed, single
from bnn.converter.packing.moves import moving_steps
from bnn.converter.packing.planner import Demand, Pass, Plan, finishes, plan_graph
from bnn.converter.packing.rounding import (
    Rounding,
    apart,
    binary_layer_fields,
    joined_shift,
    rounding_on_floats,
    rounding_on_integers,
)
from bnn.converter.packing.stretch import Stretch, Thresholds, pools_alike

# Factors and summands of a pass, which are products of those of the network.
_FINITE = {"scale", "shift", "bias", "norm_scale", "norm_shift", "pre", "slope", "post", "level_scale", "level_shift"}


class _StoredThresholds(ThresholdArrays):
    """Integer thresholds as the fields of a step."""

    signed: bool
    multipliers: list[int]
    flip: Bool
    codes: Uint8


class Emitted(NamedTuple):
    """Steps, the registers of the outputs, and for each step the place in the network whose numbers it stores."""

    steps: list[StepSpec]
    registers: list[str]
    owners: list[str]


def emit(outputs: list[Value]) -> Emitted:
    """Return the steps that compute the outputs."""
    emitter = _Emitter(plan_graph(outputs))
    with np.errstate(over="ignore"):
        emitter.run()
    for spec in emitter.steps:
        for name, tensor in spec.tensors.items():
            if name.partition(".")[0] in _FINITE and not np.isfinite(tensor).all():
                place = next(filter(None, spec.sources), spec.op)
                raise ConversionError(f"{place}: its {name}, joined with what comes after, is beyond float32")
    registers = [emitter.floats(value) for value in outputs]
    return Emitted(emitter.steps, registers, emitter.owners)


def _shape(value: Value) -> tuple[int, ...]:
    """Return the shape that a value has in a plan, where sequences and volumes are maps."""
    return as_spec_shape(value.shape)


def _is_pixels(value: Value, wish: Stretch) -> TypeGuard[Input]:
    """Whether levels are the very bytes of an input of pixels, in all channels."""
    if not isinstance(value, Input) or not value.pixels or wish.pools:
        return False
    table = wish.table
    if table.signed or table.multipliers != tuple(1 << p for p in range(8)):
        return False
    pixels = torch.arange(256)
    made = wish.level(pixels.float()[:, None].expand(-1, value.shape[0]))
    return bool((made == pixels[:, None]).all())


class _Emitter:
    def __init__(self, plan: Plan):
        self.plan = plan
        self.steps: list[StepSpec] = []
        self.owners: list[str] = []
        self.owner = ""  # of the next step
        self.registers: dict[Value, str] = {}
        # Levels of which the register is a map though they are a vector.
        self.map_shape: dict[Value, tuple[int, ...]] = {}
        self.count = 0
        # Registers of pixels as floats.
        self.of_pixels: dict[Value, str] = {}

    def run(self) -> None:
        plan = self.plan
        for value in plan.live:
            if isinstance(value, Levels) or value in plan.absorbed or value in plan.skipped:
                continue
            self._emit_value(value)

    # -- steps ------------------------------------------------------------------------------------------------------

    def _step(self, fields: StepFields, inputs: list[str], sources: list[str]) -> list[str]:
        """Append a step, and return the registers that it writes: one for each source."""
        outputs = [f"r{self.count + i}" for i in range(len(sources))]
        self.count += len(outputs)
        self.owners.append(self.owner)
        self.steps.append(fields.spec(inputs, outputs, sources))
        return outputs

    def _emit_value(self, value: Value) -> None:
        self.owner = value.owner
        wishes = [Stretch(demand, value.shape[0]) for demand in self.plan.demands.get(value, [])]
        if self.plan.makes_integers(value):
            assert isinstance(value, BinaryLayer)
            self._integers(value, wishes)
        elif self._table_of_pixels(value):
            self._levels(value, wishes)
        elif finishes(value) or value in self.plan.passes:
            self._pass(value, wishes)
        else:
            self._plain(value)
            self._levels(value, wishes)

    def _plain(self, value: Value) -> None:
        """Emit what is made by a step of its own kind."""
        if isinstance(value, Input):
            self.registers[value] = value.register
            return
        inputs = [self.floats(operand) for operand in value.inputs if not isinstance(operand, Levels)]
        if isinstance(value, Unpacked):
            self._unpack(value)
            return
        if isinstance(value, Moved):
            for moving in moving_steps(value):
                inputs = self._step(moving, inputs, [""])
            self.steps[-1].sources = [value.source]
            self.registers[value] = inputs[0]
            return
        if isinstance(value, LevelProduct):
            inputs = [self.registers[operand] for operand in value.inputs]
        fields: StepFields
        if isinstance(value, (OwnStep, Pool, LevelProduct)):
            fields = value.fields
        elif isinstance(value, Combine):
            fields = CombineStep.Fields(kind=value.kind)
        elif isinstance(value, Concat):
            fields = ConcatStep.Fields(count=len(inputs))
        elif isinstance(value, Channelwise) and isinstance(value.form, Curve):
            fields = Activation.Fields(kind=value.form.kind)
        else:
            raise AssertionError(f"no step for {value}")
        (self.registers[value],) = self._step(fields, inputs, [value.source])

    def floats(self, value: Value) -> str:
        """Return the register of a value as floats, which that of pixels is not."""
        if not isinstance(value, Input) or not value.pixels:
            return self.registers[value]
        if value not in self.of_pixels:
            (self.of_pixels[value],) = self._step(Unpack.Fields(scale=1.0), [value.register], [""])
        return self.of_pixels[value]

    def _table_of_pixels(self, value: Value) -> bool:
        """Emit a value that is a function of pixels alone, as a table of PyTorch's own numbers; False if it is none."""
        made = self.plan.passes.get(value)
        if made is None or not isinstance(made.base, Input) or not made.base.pixels:
            return False
        channels = made.base.shape[0]
        y = torch.arange(256.0)[:, None].expand(-1, channels)
        for part, other in made.chain:
            if other is not None or not isinstance(part, Channelwise):
                return False
            y = part.function(y)
        values = y.T.contiguous().to(torch.float32).numpy()
        values = values[0].copy() if (values == values[0]).all() else values
        (self.registers[value],) = self._step(Unpack.Fields(values=values), [made.base.register], [value.source])
        return True

    def _unpack(self, value: Unpacked) -> None:
        (levels,) = value.inputs
        planes = value.planes
        if planes.terms[0].zero_points is not None:
            by_channel = values_by_channel(planes)
            unpack = Unpack.Fields(values=by_channel[0].copy() if len(by_channel) == 1 else by_channel)
        elif len(planes.parts) == 1:
            unpack = Unpack.Fields(scale=float(planes.terms[0].scale))
        else:
            unpack = Unpack.Fields(values=values_of_codes(planes))
        (register,) = self._step(unpack, [self.registers[levels]], [""])
        if self.map_shape.get(levels, _shape(levels)) != _shape(value):
            (register,) = self._step(Reshape.Fields(shape=list(_shape(value))), [register], [""])
        self.steps[-1].sources = [value.source]
        self.registers[value] = register

    # -- passes -----------------------------------------------------------------------------------------------------

    def _pass(self, value: Value, wishes: list[Stretch]) -> None:
        """Emit a value and the signs that are wanted of it in one step."""
        made = self.plan.passes.get(value)
        form = EpilogueForm() if made is None else made.form
        base = value if made is None else made.base
        takes_layer = made is None or made.takes_layer
        self.owner = base.owner if takes_layer else value.owner
        made_here = self._first_signs(wishes)
        rounded: dict[str, Any] | None = None
        if not made_here:
            made_here, rounded, form = self._first_rounded(wishes, made, form, value in self.plan.floats)
        others = [wish for wish in wishes if wish not in made_here]
        keep = value in self.plan.floats or bool(others)
        sources = [value.source] if keep else []
        fields: EpilogueFields
        if takes_layer and isinstance(base, BinaryLayer):
            fields = binary_layer_fields(base, form)
            inputs = [self.registers[base.inputs[0]], *map(self.floats, base.inputs[1:])]
        elif takes_layer and isinstance(base, FloatLayer):
            fields = self._float_layer(base, form)
            inputs = [self.floats(base.inputs[0])]
        else:
            fields = self._elementwise(form, value.shape[0])
            inputs = [self.floats(base)]
        fields = replace(form.of(fields), keep=keep)
        if rounded is not None:
            fields = replace(fields, **rounded)
        elif made_here:
            found = made_here[0].on_floats
            # Bits of the epilogue are 1 below a bound; thresholds count what is reached.
            fields = replace(fields, bounds=found.t[0], flip=found.flip)
        if made_here:
            sources.append(self._source(made_here[0]))
        if form.residual is not None:
            inputs.append(self.floats(form.residual))
        outputs = self._step(fields, inputs, sources)
        if keep:
            self.registers[value] = outputs[0]
        if made_here:
            self._share(outputs[-1], made_here, value)
        self._levels(value, others)

    @staticmethod
    def _elementwise(form: EpilogueForm, channels: int) -> Elementwise.Fields:
        return Elementwise.Fields(channels=channels, scale=single(form.scale), shift=single(form.shift))

    @staticmethod
    def _float_layer(layer: FloatLayer, form: EpilogueForm) -> FloatLayerFields:
        """Return a layer on floats: its bias joined with the pass's scale and shift."""
        bias = joined_shift(layer.fields.bias, form)
        return replace(layer.fields, scale=single(form.scale), bias=single(bias))

    # -- levels -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _first_signs(wishes: list[Stretch]) -> list[Stretch]:
        """Return the first wish for signs and those that are the same."""
        signs = [wish for wish in wishes if wish.table.is_sign]
        if not signs:
            return []
        first = signs[0].on_floats
        return [w for w in signs if w is signs[0] or (pools_alike(w, signs[0]) and w.on_floats.same(first))]

    @staticmethod
    def _first_rounded(
        wishes: list[Stretch], made: Pass | None, form: EpilogueForm, in_floats: bool
    ) -> tuple[list[Stretch], dict[str, Any] | None, EpilogueForm]:
        """Return wishes for the same evenly spaced levels, the fields with which a pass makes them, and its form."""
        first = next((wish for wish in wishes if not wish.pools), None)
        rounding = None if first is None else rounding_on_floats(first)
        if first is None or rounding is None:
            return [], None, form
        same = [w for w in wishes if w is first or (not w.pools and w.on_floats.same(first.on_floats))]
        between = [(part, None) for part in first.path if isinstance(part, Channelwise)]
        fields = {"levels": rounding.levels.attribute()}
        if not between:
            return same, fields, form
        # What lies between a value and its levels is part of the pass itself only if nobody else reads the value, and
        # if it rounds as it does by itself: a layer's own scale and bias are joined with those that follow.
        together = followed(() if made is None else made.chain, between)
        affine = rounding.form.scale is not None or rounding.form.shift is not None
        joined = (made is None or made.takes_layer) and affine
        if in_floats or together is None or joined or len(same) < len(wishes):
            beside = apart(rounding)
            return ([], None, form) if beside is None else (same, beside, form)
        return same, fields, together

    @staticmethod
    def _source(wish: Stretch) -> str:
        """Return where the report can check levels before their pooling."""
        return "" if wish.pools else wish.levels.source

    def _share(self, register: str, wishes: list[Stretch], value: Value) -> None:
        """Pool the levels in a register as the wishes' stretches do, and give it to all of them."""
        first = wishes[0]
        for i in first.pools:
            pool = first.path[i]
            # The maximum passes as a maximum of levels if what comes after it rises, else as a minimum.
            source = first.levels.source if i == first.pools[-1] else ""
            register = self._pool(PoolBits.Fields, register, pool, first.rises(i + 1, None), source)
        self._give(register, wishes, value)

    def _give(self, register: str, wishes: list[Stretch], value: Value) -> None:
        for wish in wishes:
            self.registers[wish.levels] = register
            shape = _shape(wish.path[wish.pools[-1]]) if wish.pools else _shape(value)
            self.map_shape[wish.levels] = shape

    def _pool(
        self, kind: type[PoolBits.Fields] | type[PoolInt.Fields], register: str, pool: Value, rising: np.ndarray,
        source: str,
    ) -> str:  # fmt: skip
        assert isinstance(pool, Pool)
        w = pool.fields
        fields = kind(kernel=w.kernel, stride=w.stride, padding=w.padding, dilation=w.dilation, rising=rising)
        return self._step(fields, [register], [source])[0]

    def _levels(self, value: Value, wishes: list[Stretch]) -> None:
        """Emit levels as thresholds on the floats of a value in its register."""
        while wishes:
            first, *rest = wishes
            if first.pools and not first.table.is_sign:
                self._levels_of_pooled(value, first)
                wishes = rest
                continue
            found = first.on_floats
            same = [first, *(w for w in rest if pools_alike(w, first) and w.on_floats.same(found))]
            wishes = [w for w in rest if w not in same]
            self.owner = first.levels.owner
            if _is_pixels(value, first):
                self._share(value.register, same, value)
                continue
            self._share(self._pack(self.floats(value), first, self._source(first)), same, value)

    def _pack(self, register: str, wish: Stretch, source: str) -> str:
        """Emit the levels of floats in a register."""
        rounding = rounding_on_floats(wish)
        if rounding is not None:
            return self._round(register, rounding, source)
        t, flip, table = wish.on_floats.t, wish.on_floats.flip, wish.table
        if (t == t[:, :1]).all() and (flip == flip[0]).all():  # the same in every channel
            t, flip = t[:, :1].copy(), flip[:1].copy()
        fields = Pack.Fields(
            signed=table.signed, multipliers=list(table.multipliers), thresholds=t, flip=flip, codes=table.codes
        )
        return self._step(fields, [register], [source])[0]

    def _round(self, register: str, rounding: Rounding, source: str) -> str:
        """Emit evenly spaced levels of floats, or of a layer's integers."""
        fields: StepFields = rounding.fields
        if not fields.tensors() and fields.attrs().keys() == {"channels", "keep", "levels"}:
            fields = Pack.Fields(levels=rounding.levels.attribute())
        return self._step(fields, [register], [source])[0]

    def _levels_of_pooled(self, value: Value, wish: Stretch) -> None:
        """Emit the floats of a stretch up to its last pooling, and levels of those: several levels pool as floats."""
        register = self.floats(value)
        self.owner = wish.levels.owner
        for part in wish.path[: wish.pools[-1] + 1]:
            if isinstance(part, Pool):
                (register,) = self._step(part.fields, [register], [part.source])
            elif isinstance(part, Channelwise) and isinstance(part.form, Curve):
                (register,) = self._step(Activation.Fields(kind=part.form.kind), [register], [part.source])
            elif isinstance(part, Channelwise):
                form = fit([(part, None)])
                assert form is not None
                fields = form.of(self._elementwise(form, part.shape[0]))
                (register,) = self._step(fields, [register], [part.source])
        last = wish.path[wish.pools[-1]]
        self.owner = wish.levels.owner
        rest = Stretch(Demand(wish.levels, wish.path[wish.pools[-1] + 1 :]), last.shape[0])
        self._give(self._pack(register, rest, rest.levels.source), [rest], last)

    # -- integers ---------------------------------------------------------------------------------------------------

    def _integers(self, layer: BinaryLayer, wishes: list[Stretch]) -> None:
        """Emit a binary layer whose sums become levels, through thresholds."""
        found = [wish.on_integers(layer.output, layer.largest) for wish in wishes]
        groups: list[list[int]] = []
        for i, wish in enumerate(wishes):
            for group in groups:
                if found[i].same(found[group[0]]) and pools_alike(wish, wishes[group[0]]):
                    group.append(i)
                    break
            else:
                groups.append([i])
        inputs = [self.registers[layer.inputs[0]]]
        only = wishes[groups[0][0]]
        if len(groups) == 1 and (not only.pools or only.table.is_sign):
            rounding = rounding_on_integers(only, found[0], layer)
            if rounding is None:
                fields = replace(self._sums(layer, "bits"), **self._stored(found[0]))
            else:
                form, levels = rounding.form, rounding.levels.attribute()
                fields = form.of(binary_layer_fields(layer, form))
                fields = replace(fields, keep=False, levels=levels, exact=True)
            (register,) = self._step(fields, inputs, [self._source(only)])
            self._share(register, wishes, layer)
            return
        (sums,) = self._step(self._sums(layer, "int"), inputs, [""])
        for group in groups:
            self._threshold(layer, sums, [wishes[i] for i in group], found[group[0]])

    @staticmethod
    def _sums(layer: BinaryLayer, output: Literal["int", "bits"]) -> BinaryLayerFields:
        """Return a layer that hands on its sums: the input's scale and offset are in what is made of them."""
        return replace(layer.fields, output=output, input_terms=None, input_offset=False)

    @staticmethod
    def _stored(found: Thresholds) -> _StoredThresholds:
        table = found.table
        return {
            "signed": table.signed, "multipliers": list(table.multipliers), "flip": found.flip, "codes": table.codes,
            **compress(found.t),
        }  # fmt: skip

    def _threshold(self, layer: BinaryLayer, sums: str, wishes: list[Stretch], found: Thresholds) -> None:
        first = wishes[0]
        for i in first.pools:
            # The maximum passes as a maximum of sums if what comes before it rises, else as a minimum.
            sums = self._pool(PoolInt.Fields, sums, first.path[i], first.rises(0, i, layer.output), "")
        source = first.levels.source
        self.owner = first.levels.owner
        rounding = rounding_on_integers(first, found, layer)
        if rounding is not None:
            register = self._round(sums, rounding, source)
        else:
            (register,) = self._step(Threshold.Fields(**self._stored(found)), [sums], [source])
        self._give(register, wishes, layer)
