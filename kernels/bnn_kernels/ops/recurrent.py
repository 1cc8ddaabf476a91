"""Recurrent layers: from what their input adds to the gates to hidden states, one place of a sequence after the other.

The product of the input with its weights is that of an ordinary layer over all places at once. What is left is, for
each image and place, the product of the hidden state with its own weights, and the gates:

    LSTM  i, f, o = sigmoid(x_ifo + U_ifo h + b_ifo), g = tanh(x_g + U_g h + b_g), c = f c + i g, h = o tanh(c)
    GRU   r, z = sigmoid(x_rz + U_rz h + b_rz), n = tanh(x_n + r (U_n h + b_n)), h = (1 - z) n + z h
    RNN   h = tanh(x + U h + b), or relu

in PyTorch's order of gates: i, f, g, o and r, z, n. Lanes are numbers of a gate. Weights of few bits are made into
float32 once in a call, not at every place.
"""

from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import float32x16
from bnn_kernels.ops.coded_weight import CodedWeight
from bnn_kernels.ops.few_bit_weight import FewBitWeight
from bnn_kernels.ops.float_conv import filter_lanes
from bnn_kernels.runtime.mapped import release
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty

LANES = float32x16.LANES
# Gates of each kind.
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_KINDS = {kind: number for number, kind in enumerate(GATES)}


class Sizes(NamedTuple):
    """kind: its place in GATES; places of a sequence; hidden: numbers of a state; blocks: of sixteen, of all gates.

    hidden_step, cell_step: from one image to the next in the first states, 0 if all images have the same. backwards: 1
    if the last place comes first.
    """

    kind: int
    places: int
    hidden: int
    blocks: int
    hidden_step: int
    cell_step: int
    backwards: int


@inline
def _four_blocks(state, at, count, weights, j, step, start, lane, sums, to):
    """Write start + the products of a state with four blocks, each `step` numbers behind the one before."""
    sixteen = np.uint64(16)
    s0 = float32x16.load(start, lane)
    s1 = float32x16.load(start, lane + sixteen)
    s2 = float32x16.load(start, lane + sixteen + sixteen)
    s3 = float32x16.load(start, lane + sixteen + sixteen + sixteen)
    for k in range(count):
        x = float32x16.broadcast(state, at + np.uint64(k))
        s0 = float32x16.multiply_add(x, float32x16.load(weights, j), s0)
        s1 = float32x16.multiply_add(x, float32x16.load(weights, j + step), s1)
        s2 = float32x16.multiply_add(x, float32x16.load(weights, j + step + step), s2)
        s3 = float32x16.multiply_add(x, float32x16.load(weights, j + step + step + step), s3)
        j += sixteen
    float32x16.store(sums, to, s0)
    float32x16.store(sums, to + sixteen, s1)
    float32x16.store(sums, to + sixteen + sixteen, s2)
    float32x16.store(sums, to + sixteen + sixteen + sixteen, s3)


@inline
def _one_block(state, at, count, weights, j, start, lane, sums, to):
    total = float32x16.load(start, lane)
    for k in range(count):
        x = float32x16.broadcast(state, at + np.uint64(k))
        total = float32x16.multiply_add(x, float32x16.load(weights, j), total)
        j += np.uint64(16)
    float32x16.store(sums, to, total)


@inline
def _sigmoid(x):
    return np.float32(1) / (np.float32(1) + np.exp(-x))


@jit
def _scan(given, weights, bias, hidden, cell, states, cells, sums, out, size, first, last):
    """Images of out, flat (N, places (+ 1), hidden); given: flat (N, places, gates * hidden), of the input.

    weights: flat (blocks, hidden, 16). bias: (blocks * 16,). hidden, cell: flat, the first states. states, cells, sums:
    scratch, flat (N, hidden), (N, hidden) and (N, blocks * 16). An LSTM's last cell comes behind its places.
    """
    size = Sizes(*size)
    kind, count = size.kind, size.hidden
    gates = 4 if kind == 0 else 3 if kind == 1 else 1
    rows = size.places + 1 if kind == 0 else size.places
    step = np.uint64(count * 16)
    for n in range(first, last):
        h, c, s = n * count, n * count, n * size.blocks * 16
        for i in range(count):
            states[h + i] = hidden[n * size.hidden_step + i]
        if kind == 0:
            for i in range(count):
                cells[c + i] = cell[n * size.cell_step + i]
        for turn in range(size.places):
            place = size.places - 1 - turn if size.backwards else turn
            block = 0
            while block + 4 <= size.blocks:
                lane = np.uint64(block * 16)
                j = np.uint64(block) * step
                _four_blocks(states, np.uint64(h), count, weights, j, step, bias, lane, sums, np.uint64(s) + lane)
                block += 4
            while block < size.blocks:
                lane = np.uint64(block * 16)
                j = np.uint64(block) * step
                _one_block(states, np.uint64(h), count, weights, j, bias, lane, sums, np.uint64(s) + lane)
                block += 1
            x = (n * size.places + place) * gates * count
            y = (n * rows + place) * count
            if kind == 0:
                for i in range(count):
                    enter = _sigmoid(given[x + i] + sums[s + i])
                    keep = _sigmoid(given[x + count + i] + sums[s + count + i])
                    new = np.tanh(given[x + 2 * count + i] + sums[s + 2 * count + i])
                    show = _sigmoid(given[x + 3 * count + i] + sums[s + 3 * count + i])
                    now = keep * cells[c + i] + enter * new
                    cells[c + i] = now
                    states[h + i] = show * np.tanh(now)
            elif kind == 1:
                for i in range(count):
                    reset = _sigmoid(given[x + i] + sums[s + i])
                    keep = _sigmoid(given[x + count + i] + sums[s + count + i])
                    new = np.tanh(given[x + 2 * count + i] + reset * sums[s + 2 * count + i])
                    states[h + i] = (np.float32(1) - keep) * new + keep * states[h + i]
            elif kind == 2:
                for i in range(count):
                    states[h + i] = np.tanh(given[x + i] + sums[s + i])
            else:
                for i in range(count):
                    states[h + i] = max(given[x + i] + sums[s + i], np.float32(0))
            for i in range(count):
                out[y + i] = states[h + i]
        if kind == 0:
            y = (n * rows + size.places) * count
            for i in range(count):
                out[y + i] = cells[c + i]


def _expand_kernel(expand: Any) -> Any:
    """Return the kernel that makes float32 blocks of weights of few bits, see `FewBitWeight`."""

    def expand_blocks(packed, length, per_word, to, first, last):
        for block in range(first, last):
            expand(packed, block, length, per_word, to[block * length * 16 : (block + 1) * length * 16])

    expand_blocks.__name__ = expand_blocks.__qualname__ = f"expand_blocks_{expand.py_func.__name__}"
    return jit(expand_blocks)


class Recurrence:
    """One layer of a recurrent network, in one direction.

    kind: of GATES. weight: (gates * hidden, hidden, 1, 1), float32 or of few bits. bias: float32 (gates * hidden,) or
    None, added to the products with the state. backwards: whether the last place comes first.
    """

    def __init__(
        self, kind: str, weight: np.ndarray | FewBitWeight | CodedWeight, bias: np.ndarray | None, backwards: bool
    ):
        self.kind, self.backwards = kind, backwards
        rows, self.hidden = int(weight.shape[0]), int(weight.shape[1])
        self.blocks = -(-rows // LANES)
        self.bias = np.zeros(self.blocks * LANES, np.float32)
        if bias is not None:
            self.bias[:rows] = bias
        self._few: FewBitWeight | CodedWeight | None = None
        if isinstance(weight, np.ndarray):
            self._weights = filter_lanes(weight, 1).reshape(-1)
            release(weight)
        else:
            self._few = weight
            self._expand = _expand_kernel(weight.expand)

    def _floats(self) -> np.ndarray:
        """Return the weights as flat `filter_lanes`."""
        if self._few is None:
            return self._weights
        opened = empty((self.blocks * self.hidden * LANES,), np.float32)
        few = self._few
        run_rows(self._expand, self.blocks, opened.size // 4, tuple(few.packed), self.hidden, few.per_word, opened)
        return opened

    def __call__(self, given: np.ndarray, hidden: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Return the hidden states at all places, and behind them the last cell of an LSTM, (N, 1, places (+ 1), H).

        given: float32 (N, 1, places, gates * H). hidden, cell: the first states, (N, H), or (H,) for all images.
        """
        n, _, places, _ = given.shape
        rows = places + 1 if self.kind == "lstm" else places
        out = empty((n, 1, rows, self.hidden), np.float32)
        states, cells = (empty((n, self.hidden), np.float32) for _ in range(2))
        sums = empty((n, self.blocks * LANES), np.float32)
        weights = self._floats()
        hidden_step, cell_step = (self.hidden if start.ndim > 1 else 0 for start in (hidden, cell))
        kind, backwards = _KINDS[self.kind], int(self.backwards)
        size = Sizes(kind, places, self.hidden, self.blocks, hidden_step, cell_step, backwards)
        flat = [x.reshape(-1) for x in (given, weights, self.bias, hidden, cell, states, cells, sums, out)]
        run_rows(_scan, n, n * places * self.blocks * (self.hidden * 2 + 200), *flat, tuple(size))
        return out
