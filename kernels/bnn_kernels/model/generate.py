"""Text from a packed decoder: the next token again and again, the most probable one or drawn."""

from typing import Any, Protocol

import numpy as np

from bnn_kernels.checks import integer
from bnn_kernels.model.state import State


class Decoder(Protocol):
    """What a `PackedModel` offers that computes step by step."""

    input_shapes: list[tuple[int, ...]]
    outputs: list[tuple[str, tuple[int, ...]]]

    @property
    def most_steps(self) -> int | None:
        """How many steps a state can take."""

    def start(self, batch: int = 1) -> State:
        """Return the state of `batch` sequences before their first token."""

    def step(self, *inputs: Any) -> Any:
        """Return the logits after one token more."""


def generate(
    model: Decoder,
    tokens: np.ndarray,
    count: int,
    temperature: float = 0.0,
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """Return tokens (N, T), T >= 1, followed by `count` more, int64 (N, T + count).

    model: takes one token (N, 1) a step and returns logits (N, 1, classes) or (N, classes), as what bnn.convert_step
    makes of a decoder. temperature: 0 takes the most probable token each time, others draw from
    softmax(logits / temperature) by `generator`. After `most_steps` tokens what is old is forgotten: the later half is
    read again.
    """
    tokens = np.array(tokens)
    if tokens.ndim != 2 or not tokens.size or tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens must be integers (N, T) with T >= 1, got {tokens.dtype} {tokens.shape}")
    if model.input_shapes != [(1,)] or len(model.outputs) != 1:
        raise ValueError(f"a decoder takes one token (N, 1) a step and returns logits, this model is {model!r}")
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature!r}")
    if temperature and generator is None:
        generator = np.random.default_rng()
    count = integer(count, "count", 0)
    known = tokens.shape[1]
    tokens = np.concatenate([tokens.astype(np.int64), np.zeros((len(tokens), count), np.int64)], 1)
    context = model.most_steps
    state, first = model.start(len(tokens)), 0 if context is None else max(0, known - context)
    for end in range(known, known + count):
        if context is not None and state.length + end - first > context:
            state.reset()
            first = max(0, end - min(context // 2 + 1, context))
        for place in range(first, end):
            logits = model.step(tokens[:, place : place + 1], state).reshape(len(tokens), -1)
        first = end
        tokens[:, end] = _next(logits, temperature, generator)
    return tokens


def _next(logits: np.ndarray, temperature: float, generator: np.random.Generator | None) -> np.ndarray:
    """Return a token for each row of logits (N, classes)."""
    if temperature == 0 or generator is None:
        return logits.argmax(1)
    scaled = logits.astype(np.float64) / temperature
    # The largest of logits with Gumbel noise is a draw from their softmax.
    return (scaled + generator.gumbel(size=scaled.shape)).argmax(1)
