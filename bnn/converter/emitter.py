"""From a graph and its plan to the steps of a packed model."""

from typing import Any, NamedTuple

import numpy as np
from bnn_kernels import StepSpec
from bnn_kernels.bits.threshold_storage import compress

from bnn.converter.epilogue_form import EpilogueForm, fit
from bnn.converter.errors import ConversionError
from bnn.converter.fusion import Stretch, Thresholds, pools_alike
from bnn.converter.graph import (
    BinaryLayer,
    Channelwise,
    Combine,
    Concat,
    Curve,
    FloatLayer,
    Input,
    Levels,
    Moved,
    OwnStep,
    Pool,
    Unpacked,
    Value,
)
from bnn.converter.level_table import values_of_codes
from bnn.converter.moving import moving_steps
from bnn.converter.planner import Demand, Plan, finishes, plan_graph

# Factors and summands of a pass, which are products of those of the network.
_FINITE = {"scale", "shift", "bias", "norm_scale", "norm_shift", "pre", "slope", "post"}

Tensors = dict[str, np.ndarray]


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
    return Emitted(emitter.steps, [emitter.registers[value] for value in outputs], emitter.owners)


def _shape(value: Value) -> tuple[int, ...]:
    """Return the shape that a value has in a plan: a sequence is a map of one row."""
    return (value.shape[0], 1, value.shape[1]) if len(value.shape) == 2 else value.shape


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

    def run(self) -> None:
        plan = self.plan
        for value in plan.live:
            if isinstance(value, Levels) or value in plan.absorbed or value in plan.skipped:
                continue
            self._emit_value(value)

    # -- steps ------------------------------------------------------------------------------------------------------

    def _step(
        self, op: str, inputs: list[str], sources: list[str], attrs: dict[str, Any] | None = None,
        tensors: Tensors | None = None,
    ) -> list[str]:  # fmt: skip
        outputs = [f"r{self.count + i}" for i in range(len(sources))]
        self.count += len(outputs)
        self.owners.append(self.owner)
        self.steps.append(StepSpec(op, inputs, outputs, attrs or {}, tensors or {}, sources))
        return outputs

    def _emit_value(self, value: Value) -> None:
        self.owner = value.owner
        wishes = [Stretch(demand, value.shape[0]) for demand in self.plan.demands.get(value, [])]
        if self.plan.makes_integers(value):
            assert isinstance(value, BinaryLayer)
            self._integers(value, wishes)
        elif finishes(value) or value in self.plan.passes:
            self._pass(value, wishes)
        else:
            self._plain(value)
            self._levels(value, wishes)

    def _plain(self, value: Value) -> None:
        """Emit what is made by a step of its own kind."""
        inputs = [self.registers[operand] for operand in value.inputs if not isinstance(operand, Levels)]
        if isinstance(value, Input):
            self.registers[value] = value.register
            return
        if isinstance(value, Unpacked):
            self._unpack(value)
            return
        if isinstance(value, Moved):
            for op, attrs, tensors in moving_steps(value):
                inputs = self._step(op, inputs, [""], attrs, tensors)
            self.steps[-1].sources = [value.source]
            self.registers[value] = inputs[0]
            return
        weights: Tensors = {}
        if isinstance(value, OwnStep):
            op, attrs, weights = value.op, value.attrs, value.tensors
        elif isinstance(value, Pool):
            op, attrs = f"{value.kind}_pool", value.attrs
        elif isinstance(value, Combine):
            op, attrs = "combine", {"kind": value.kind}
        elif isinstance(value, Concat):
            op, attrs = "concat", {"count": len(inputs)}
        elif isinstance(value, Channelwise) and isinstance(value.form, Curve):
            op, attrs = "activation", {"kind": value.form.kind}
        else:
            raise AssertionError(f"no step for {value}")
        (self.registers[value],) = self._step(op, inputs, [value.source], attrs, weights)

    def _unpack(self, value: Unpacked) -> None:
        (levels,) = value.inputs
        planes = value.planes
        if len(planes.parts) == 1:
            attrs, tensors = {"scale": float(planes.terms[0].scale)}, {}
        else:
            attrs, tensors = {}, {"values": values_of_codes(planes)}
        (register,) = self._step("unpack", [self.registers[levels]], [""], attrs, tensors)
        if self.map_shape.get(levels, _shape(levels)) != _shape(value):
            (register,) = self._step("reshape", [register], [""], {"shape": list(_shape(value))})
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
        attrs, tensors = form.attrs(), form.tensors()
        signs = self._first_signs(wishes)
        others = [wish for wish in wishes if wish not in signs]
        keep = value in self.plan.floats or bool(others)
        sources = [value.source] if keep else []
        if signs:
            found = signs[0].on_floats()
            # Bits of the epilogue are 1 below a bound; thresholds count what is reached.
            tensors |= {"bounds": found.t[0], "flip": found.flip}
            sources.append(self._source(signs[0]))
        if not keep:
            attrs["keep"] = False
        residual = [] if form.residual is None else [self.registers[form.residual]]
        if takes_layer and isinstance(base, BinaryLayer):
            outputs = self._binary_pass(base, form, attrs, tensors, residual, sources)
        elif takes_layer and isinstance(base, FloatLayer):
            outputs = self._float_pass(base, form, attrs, tensors, residual, sources)
        else:
            attrs["channels"] = value.shape[0]
            tensors |= self._affine(form)
            outputs = self._step("elementwise", [self.registers[base], *residual], sources, attrs, tensors)
        if keep:
            self.registers[value] = outputs[0]
        if signs:
            self._share(outputs[-1], signs, value)
        self._levels(value, others)

    @staticmethod
    def _affine(form: EpilogueForm) -> Tensors:
        parts = {"scale": form.scale, "shift": form.shift}
        return {name: part.astype(np.float32) for name, part in parts.items() if part is not None}

    def _binary_pass(
        self, layer: BinaryLayer, form: EpilogueForm, attrs: dict[str, Any], tensors: Tensors, residual: list[str],
        sources: list[str],
    ) -> list[str]:  # fmt: skip
        """Emit a binary layer whose sums become floats: its own scales and bias joined with the pass's."""
        for i, scale in enumerate(layer.scales):
            exact = scale.detach().numpy()
            tensors[f"scale.{i}"] = (
                exact.astype(np.float32) if form.scale is None else (exact * form.scale).astype(np.float32)
            )
        shift = None if layer.bias is None else layer.bias.detach().numpy()
        if form.scale is not None and shift is not None:
            shift = shift * form.scale
        if form.shift is not None:
            shift = form.shift if shift is None else shift + form.shift
        if shift is not None:
            tensors["shift"] = shift.astype(np.float32)
        attrs = {**layer.attrs, **layer.input_attrs, **attrs, "output": "float"}
        inputs = [self.registers[layer.inputs[0]]]
        if layer.input_scale:
            attrs["input_scale"] = True
            inputs.append(self.registers[layer.inputs[1]])
        return self._step(layer.op, inputs + residual, sources, attrs, {**layer.tensors, **tensors})

    def _float_pass(
        self, layer: FloatLayer, form: EpilogueForm, attrs: dict[str, Any], tensors: Tensors, residual: list[str],
        sources: list[str],
    ) -> list[str]:  # fmt: skip
        """Emit a layer on floats: its bias joined with the pass's scale and shift."""
        own = dict(layer.tensors)
        bias = own.pop("bias", None)
        if form.scale is not None:
            tensors["scale"] = form.scale.astype(np.float32)
        if bias is not None and form.scale is not None:
            bias = bias * form.scale
        if form.shift is not None:
            bias = form.shift if bias is None else bias + form.shift
        if bias is not None:
            tensors["bias"] = bias.astype(np.float32)
        inputs = [self.registers[layer.inputs[0]]]
        return self._step(layer.op, inputs + residual, sources, {**layer.attrs, **attrs}, {**own, **tensors})

    # -- levels -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _first_signs(wishes: list[Stretch]) -> list[Stretch]:
        """Return the first wish for signs and those that are the same."""
        signs = [wish for wish in wishes if wish.table.is_sign]
        if not signs:
            return []
        first = signs[0].on_floats()
        return [w for w in signs if w is signs[0] or (pools_alike(w, signs[0]) and w.on_floats().same(first))]

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
            register = self._pool("pool_bits", register, pool, first.rises(i + 1, None), source)
        self._give(register, wishes, value)

    def _give(self, register: str, wishes: list[Stretch], value: Value) -> None:
        for wish in wishes:
            self.registers[wish.levels] = register
            shape = _shape(wish.path[wish.pools[-1]]) if wish.pools else _shape(value)
            self.map_shape[wish.levels] = shape

    def _pool(self, op: str, register: str, pool: Value, rising: np.ndarray, source: str) -> str:
        assert isinstance(pool, Pool)
        return self._step(op, [register], [source], pool.attrs, {"rising": rising})[0]

    def _levels(self, value: Value, wishes: list[Stretch]) -> None:
        """Emit levels as thresholds on the floats of a value in its register."""
        while wishes:
            first, *rest = wishes
            if first.pools and not first.table.is_sign:
                self._levels_of_pooled(value, first)
                wishes = rest
                continue
            found = first.on_floats()
            same = [first, *(w for w in rest if pools_alike(w, first) and w.on_floats().same(found))]
            wishes = [w for w in rest if w not in same]
            self.owner = first.levels.owner
            self._share(self._pack(self.registers[value], found, self._source(first)), same, value)

    def _pack(self, register: str, found: Thresholds, source: str) -> str:
        t, flip, table = found.t, found.flip, found.table
        if (t == t[:, :1]).all() and (flip == flip[0]).all():  # the same in every channel
            t, flip = t[:, :1].copy(), flip[:1].copy()
        attrs = {"signed": table.signed, "multipliers": list(table.multipliers)}
        return self._step("pack", [register], [source], attrs, {"thresholds": t, "flip": flip, "codes": table.codes})[0]

    def _levels_of_pooled(self, value: Value, wish: Stretch) -> None:
        """Emit the floats of a stretch up to its last pooling, and levels of those: several levels pool as floats."""
        register = self.registers[value]
        self.owner = wish.levels.owner
        for part in wish.path[: wish.pools[-1] + 1]:
            if isinstance(part, Pool):
                (register,) = self._step("max_pool", [register], [part.source], part.attrs)
            elif isinstance(part, Channelwise) and isinstance(part.form, Curve):
                (register,) = self._step("activation", [register], [part.source], {"kind": part.form.kind})
            elif isinstance(part, Channelwise):
                form = fit([(part, None)])
                assert form is not None
                attrs = {**form.attrs(), "channels": part.shape[0]}
                tensors = {**form.tensors(), **self._affine(form)}
                (register,) = self._step("elementwise", [register], [part.source], attrs, tensors)
        last = wish.path[wish.pools[-1]]
        self.owner = wish.levels.owner
        rest = Stretch(Demand(wish.levels, wish.path[wish.pools[-1] + 1 :]), last.shape[0])
        self._give(self._pack(register, rest.on_floats(), rest.levels.source), [rest], last)

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
            attrs = {**layer.attrs, **self._planes(found[0]), "output": "bits"}
            tensors = {**layer.tensors, **self._stored(found[0])}
            (register,) = self._step(layer.op, inputs, [self._source(only)], attrs, tensors)
            self._share(register, wishes, layer)
            return
        (sums,) = self._step(layer.op, inputs, [""], {**layer.attrs, "output": "int"}, layer.tensors)
        for group in groups:
            self._threshold(layer, sums, [wishes[i] for i in group], found[group[0]])

    @staticmethod
    def _planes(found: Thresholds) -> dict[str, Any]:
        return {"signed": found.table.signed, "multipliers": list(found.table.multipliers)}

    @staticmethod
    def _stored(found: Thresholds) -> Tensors:
        return {**compress(found.t), "flip": found.flip, "codes": found.table.codes}

    def _threshold(self, layer: BinaryLayer, sums: str, wishes: list[Stretch], found: Thresholds) -> None:
        first = wishes[0]
        for i in first.pools:
            # The maximum passes as a maximum of sums if what comes before it rises, else as a minimum.
            sums = self._pool("pool_int", sums, first.path[i], first.rises(0, i, layer.output), "")
        source = first.levels.source
        self.owner = first.levels.owner
        (register,) = self._step("threshold", [sums], [source], self._planes(found), self._stored(found))
        self._give(register, wishes, layer)
