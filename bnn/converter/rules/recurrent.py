"""Rules of recurrent layers over a sequence: nn.LSTM, nn.GRU and nn.RNN, of several layers and both directions."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from bnn_kernels.steps.fields import Float32
from bnn_kernels.steps.recurrent import Recurrent
from torch import Tensor

from bnn.converter.graph.builder import Builder, to_numpy
from bnn.converter.graph.values import OffBatch, Value
from bnn.converter.recognize.few_values import few_values
from bnn.converter.registry import register_rule
from bnn.converter.rules.layers import linear_of
from bnn.converter.rules.quantized import Weight, stored_weight

aten = torch.ops.aten


@register_rule(aten.lstm.input)
def lstm(build: Builder, x: Any, states: Any, parameters: Any, *options: Any) -> tuple[Value, ...]:
    """Output, and the last hidden states and cells of all layers."""
    return _recurrent(build, "lstm", x, states, parameters, options)


def _of_one_state(kind: str, build: Builder, x: Any, state: Any, parameters: Any, *options: Any) -> tuple[Value, ...]:
    """Output, and the last hidden states of all layers."""
    return _recurrent(build, kind, x, [state], parameters, options)


for _kind in ("gru", "rnn_tanh", "rnn_relu"):
    register_rule(getattr(aten, _kind).input)(functools.partial(_of_one_state, _kind))


def _recurrent(
    build: Builder, kind: str, x: Any, states: Any, parameters: Any, options: Sequence[Any]
) -> tuple[Value, ...]:
    """Return the output and the last states (hidden, cell) of the layers, their axes as in PyTorch.

    options: has_biases, num_layers, dropout, train, bidirectional, batch_first.
    """
    has_biases, layers, _, _, bidirectional, batch_first = options
    if not isinstance(x, Value):
        build.fail("a recurrent layer whose sequence does not depend on the input cannot be converted")
    if not all(isinstance(part, Tensor) for part in parameters):
        build.fail("a recurrent layer whose weights depend on the input cannot be converted")
    directions = 2 if bidirectional else 1
    each = len(parameters) // (layers * directions)
    plain = 4 if has_biases else 2
    if not batch_first:
        x = build.move(x, lambda places: places.transpose(0, 1))
    if len(x.shape) != 2 or isinstance(x, OffBatch):
        build.fail(
            "takes sequences (T, N, K), but the first axis of a network's input is its batch: use batch_first=True, or "
            "transpose the input in forward"
        )
    y = build.channels_first(x)
    last: list[list[Value]] = []
    for layer in range(layers):
        made = []
        for backwards in range(directions):
            number = layer * directions + backwards
            weights = parameters[number * each : (number + 1) * each]
            first = [_state(build, part, number) for part in states]
            weights, projection = weights[:plain], weights[plain:]
            make = functools.partial(_projected, projection=projection[0]) if projection else _direction
            found, *ends = make(build, kind, y, weights, first, bool(backwards))
            made.append(found)
            last.append(ends)
        y = build.concat(made)
    output = build.channels_last(y)
    if not batch_first:
        output = build.move(output, lambda places: places.transpose(0, 1))
    return output, *(_stacked(build, [ends[i] for ends in last]) for i in range(len(last[0])))


def _state(build: Builder, given: Any, number: int) -> Value | Float32 | None:
    """Return the first state of a layer and direction: a value (H,), a constant, or None for zeros."""
    if isinstance(given, Value):
        state = build.move(given, lambda places: places[number])
        if isinstance(state, OffBatch):
            build.fail("its first state must be one (layers, N, hidden) of each image")
        return state
    rows = given[number].detach()
    if bool((rows != rows[:1]).any()):
        build.fail("its first state is a constant that differs between images")
    return to_numpy(rows[0]) if bool(rows.any()) else None


def _projected(
    build: Builder, kind: str, x: Value, weights: Sequence[Tensor], first: Sequence[Value | Float32 | None],
    backwards: bool, projection: Tensor,
) -> tuple[Value, ...]:  # fmt: skip
    """Return the projected hidden states (P, T), the last one (P,) and the last cell (H,) of an LSTM with proj_size.

    projection: R (P, H) of the states R @ m. As W @ (R @ m) is (W @ R) @ m, the layer runs without it, on m, with the
    weight W @ R; a first state h is R @ m of m = pinv(R) @ h.
    """
    of_input, of_state, *biases = weights
    wide = projection.detach().to(torch.float64)
    of_both = (of_state.detach().to(torch.float64) @ wide).to(torch.float32)
    hidden, *cell = first
    if hidden is not None:
        inverse = torch.linalg.pinv(wide)
        if not torch.allclose(wide @ inverse, torch.eye(len(wide), dtype=torch.float64), atol=1e-6):
            build.fail("its projection (proj_size) has rows that depend on others, so its first state must be zeros")
        inverse = inverse.to(torch.float32)
        hidden = (
            build.float_linear(hidden, inverse, None)
            if isinstance(hidden, Value)
            else to_numpy(inverse @ torch.from_numpy(hidden))
        )
    states, _, *cells = _direction(build, kind, x, [of_input, of_both, *biases], [hidden, *cell], backwards)
    y = build.channels_first(linear_of(build, build.channels_last(states), projection.detach(), None))
    end = 0 if backwards else x.shape[1] - 1
    return y, build.move(y, functools.partial(torch.select, dim=-1, index=end)), *cells


def _direction(
    build: Builder, kind: str, x: Value, weights: Sequence[Tensor], first: Sequence[Value | Float32 | None],
    backwards: bool,
) -> tuple[Value, ...]:  # fmt: skip
    """Return the hidden states (H, T) of a sequence (K, T), and the last ones (H,): hidden, and of an LSTM the cell."""
    of_input, of_state, *biases = weights
    bias, state_bias = biases or (None, None)
    gates = build.channels_first(linear_of(build, build.channels_last(x), of_input, bias))
    found = few_values(of_state)
    weight: Weight = of_state.detach() if found is None else found.terms
    hidden, length = of_state.shape[1], x.shape[1]
    inputs = [part for part in first if isinstance(part, Value)]
    constants = [None if isinstance(part, Value) else part for part in (*first, None)]
    fields = Recurrent.Fields(
        kind=kind,
        shape=list(of_state.shape),
        backwards=backwards,
        takes_hidden=isinstance(first[0], Value),
        takes_cell=isinstance(first[-1], Value) and len(first) > 1,
        bias=None if state_bias is None else to_numpy(state_bias),
        hidden=constants[0],
        cell=constants[1],
        **stored_weight(weight, of_state.shape),
    )
    places = length + 1 if kind == "lstm" else length
    made = build.step((gates, *inputs), (hidden, places), fields)
    end = 0 if backwards else length - 1
    states = build.move(made, lambda p: p[..., :length])
    return states, *(
        build.move(made, functools.partial(torch.select, dim=-1, index=at)) for at in (end, length)[: len(first)]
    )


def _stacked(build: Builder, states: Sequence[Value]) -> Value:
    """Return states (H,) of all layers and directions as PyTorch has them, (layers, N, H)."""
    together = build.concat(states)
    stacked: Value = build.move(together, lambda p: p.reshape(len(p), len(states), -1).transpose(0, 1))
    return stacked
