"""Which values of a graph become floats in memory, which never leave a pass, and which become thresholds.

A quantizer reads some value. From there back to the layer that made it there is mostly monotone arithmetic by channel
and max pooling, so the levels are thresholds on any value of that stretch. The planner goes through the graph from its
outputs backwards and hands each quantizer's wish back until it meets a value that has to be in memory anyway (somebody
else reads its floats) or a layer: on a binary layer's integers, if nobody needs its floats, else on floats.
"""

from dataclasses import dataclass, field

from bnn_kernels.steps.pool import MaxPool

from bnn.converter.graph.values import (
    Add,
    BinaryLayer,
    Channelwise,
    Curve,
    FloatLayer,
    LevelProduct,
    Levels,
    Moved,
    Pool,
    Unpacked,
    Value,
    live_values,
)
from bnn.converter.levels.table import FEWEST_SPACED
from bnn.converter.packing.epilogue import EpilogueForm, Link, fit


@dataclass(frozen=True)
class Demand:
    """Levels that are wanted of a value; path: what lies between, first computed first."""

    levels: Levels
    path: tuple[Value, ...] = ()

    def before(self, value: Value) -> "Demand":
        """Return the same demand on the operand of this value."""
        return Demand(self.levels, (value, *self.path))


@dataclass(frozen=True)
class Pass:
    """One pass that makes a value: from which value (a layer's sums if `takes_layer`), how, and by what links."""

    base: Value
    form: EpilogueForm
    takes_layer: bool
    chain: tuple[Link, ...]


@dataclass
class Plan:
    """live: all values, operands first. floats: those that somebody reads as floats. demands: levels to make where.

    passes: how elementwise values are made; absorbed: what never gets into memory because a pass takes it.
    """

    live: list[Value]
    floats: set[Value] = field(default_factory=set)
    demands: dict[Value, list[Demand]] = field(default_factory=dict)
    passes: dict[Value, Pass] = field(default_factory=dict)
    absorbed: set[Value] = field(default_factory=set)
    skipped: set[Value] = field(default_factory=set)

    def makes_integers(self, value: Value) -> bool:
        """Whether a value is a binary layer whose integers alone are wanted, as levels."""
        return isinstance(value, BinaryLayer) and value.has_integers and value not in self.floats


class _Planner:
    def __init__(self, outputs: list[Value]):
        self.plan = Plan(live_values(outputs))
        self.plan.floats.update(outputs)
        self.users: dict[Value, int] = {}
        for value in self.plan.live:
            for operand in value.inputs:
                self.users[operand] = self.users.get(operand, 0) + 1
        for value in outputs:
            self.users[value] = self.users.get(value, 0) + 1

    def run(self) -> Plan:
        for value in reversed(self.plan.live):
            if value not in self.plan.absorbed:
                self._visit(value)
        return self.plan

    def _visit(self, value: Value) -> None:
        plan = self.plan
        if isinstance(value, Levels):
            plan.demands.setdefault(value.inputs[0], []).append(Demand(value))
            return
        wishes = plan.demands.get(value, [])
        if value not in plan.floats:
            if not wishes:
                plan.skipped.add(value)  # only what is skipped itself reads it
                return
            if self._hands_back(value, wishes):
                before = plan.demands.setdefault(value.inputs[0], [])
                before.extend(wish.before(value) for wish in wishes)
                del plan.demands[value]
                plan.skipped.add(value)
                return
        if isinstance(value, BinaryLayer):
            plan.floats.update(value.inputs[1:])
        elif isinstance(value, Unpacked | LevelProduct):
            pass
        elif isinstance(value, Add) or (isinstance(value, Channelwise) and not isinstance(value.form, Curve)):
            self._plan_pass(value)
        else:
            plan.floats.update(value.inputs)

    def _hands_back(self, value: Value, wishes: list[Demand]) -> bool:
        """Whether levels wanted of this value can be had of its operand as well."""
        if isinstance(value, Channelwise):
            return value.monotone and not any(_would_need_a_table(value, wish) for wish in wishes)
        if isinstance(value, Pool):
            signs = all(wish.levels.table.is_sign for wish in wishes)
            return _pools_maxima(value) and (signs or self._stands_on_integers(value))
        if isinstance(value, Moved) and value.is_flatten and len(value.inputs[0].shape) > 1:
            by_channel = [part for wish in wishes for part in (wish.levels, *wish.path)]
            uniform = all(part.uniform for part in by_channel if isinstance(part, Levels | Channelwise))
            return uniform or not _spreads(value)
        return False

    def _stands_on_integers(self, value: Value) -> bool:
        """Whether levels handed back from here come to the integers of a binary layer.

        Where they do not, several levels pool as floats: then each quantizer would pool for itself, and what lies
        before the pooling would not be part of its layer's pass.
        """
        while _pools_maxima(value) or (isinstance(value, Channelwise) and value.monotone):
            value = value.inputs[0]
        return self.plan.makes_integers(value)

    def _plan_pass(self, value: Value) -> None:
        """Gather what one pass can compute on the way to this value."""
        plan = self.plan
        chain: list[Link] = []
        form: EpilogueForm | None = None
        current = value
        while True:
            main, other = self._operands(current)
            chain.insert(0, (current, other))
            form = fit(chain)
            assert form is not None, "a single link always fits"
            if not self._can_absorb(main):
                plan.floats.add(main)
                break
            if finishes(main):
                plan.absorbed.add(main)
                break
            if fit([(main, self._operands(main)[1]), *chain]) is None:
                plan.floats.add(main)
                break
            plan.absorbed.add(main)
            current = main
        takes_layer = main in plan.absorbed
        plan.passes[value] = Pass(main, form, takes_layer, tuple(chain))
        if form.residual is not None:
            plan.floats.add(form.residual)
        if finishes(main) and takes_layer:
            plan.floats.update(operand for operand in main.inputs if not isinstance(operand, Levels))

    def _can_absorb(self, value: Value) -> bool:
        if self.users[value] > 1:
            return False
        if isinstance(value, Channelwise):
            return not isinstance(value.form, Curve)
        return isinstance(value, Add) or finishes(value)

    def _operands(self, value: Value) -> tuple[Value, Value | None]:
        """Return the operand that the pass goes on from and, of a sum, the other one."""
        if not isinstance(value, Add):
            return value.inputs[0], None
        a, b = value.inputs
        return (a, b) if self._rank(a) >= self._rank(b) else (b, a)

    def _rank(self, value: Value) -> int:
        """How much is gained by going on from an operand: a binary layer most, then a float one, then any pass."""
        found = 0
        while self._can_absorb(value):
            if finishes(value):
                return 3 if isinstance(value, BinaryLayer) else 2
            found, value = 1, value.inputs[0]
        return found


def finishes(value: Value) -> bool:
    """Whether the step of a layer runs a pass over its sums."""
    return isinstance(value, BinaryLayer | FloatLayer)


def _would_need_a_table(value: Channelwise, wish: Demand) -> bool:
    """Whether levels are one pass of arithmetic from this value on, but not from its operand on.

    From the operand on they would be thresholds, a number for each level and channel: in LeNet-5, where batch norm
    follows ReLU, 255 for each of 50 channels, a tenth of its file at 8 bits, and slower even at 2 bits.
    """
    if wish.levels.spacing is None or len(wish.levels.table.levels) < FEWEST_SPACED or isinstance(value.form, Curve):
        return False
    after: list[Link] = [(part, None) for part in wish.path if isinstance(part, Channelwise)]
    return fit(after) is not None and fit([(value, None), *after]) is None


def _pools_maxima(value: Value) -> bool:
    return isinstance(value, Pool) and isinstance(value.fields, MaxPool.Fields)


def _spreads(value: Value) -> bool:
    """Whether a value makes a vector of a map with several pixels."""
    return isinstance(value, Moved) and value.inputs[0].shape[0] != value.shape[0]


def plan_graph(outputs: list[Value]) -> Plan:
    """Return what is to become of every value that the outputs depend on."""
    return _Planner(outputs).run()
