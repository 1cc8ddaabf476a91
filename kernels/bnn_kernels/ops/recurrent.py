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
from bnn_kernels.compile.simd.exponentials import sigmoid, tanh
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
    """kind: its place in GATES; places of a sequence; hidden: numbers of a state; blocks: of sixteen, of one gate.

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
def _six_images(states, at, count, weights, j, sums, to, step):
    """Write the products of six states, which begin at `at`, with a block; each `step` behind the one before."""
    a0, a1, a2, a3, a4, a5 = at
    s0 = s1 = s2 = s3 = s4 = s5 = float32x16.zero()
    for k in range(count):
        w = float32x16.load(weights, j)
        j += np.uint64(16)
        i = np.uint64(k)
        s0 = float32x16.multiply_add(float32x16.broadcast(states, a0 + i), w, s0)
        s1 = float32x16.multiply_add(float32x16.broadcast(states, a1 + i), w, s1)
        s2 = float32x16.multiply_add(float32x16.broadcast(states, a2 + i), w, s2)
        s3 = float32x16.multiply_add(float32x16.broadcast(states, a3 + i), w, s3)
        s4 = float32x16.multiply_add(float32x16.broadcast(states, a4 + i), w, s4)
        s5 = float32x16.multiply_add(float32x16.broadcast(states, a5 + i), w, s5)
    float32x16.store(sums, to, s0)
    float32x16.store(sums, to + step, s1)
    float32x16.store(sums, to + step + step, s2)
    float32x16.store(sums, to + step + step + step, s3)
    float32x16.store(sums, to + step + step + step + step, s4)
    float32x16.store(sums, to + step + step + step + step + step, s5)


@inline
def _four_blocks(states, at, count, weights, j, step, sums, to):
    """Write the products of one state with four blocks, each `step` numbers behind the one before."""
    sixteen = np.uint64(16)
    s0 = s1 = s2 = s3 = float32x16.zero()
    for k in range(count):
        x = float32x16.broadcast(states, at + np.uint64(k))
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
def _one_block(states, at, count, weights, j, sums, to):
    total = float32x16.zero()
    for k in range(count):
        x = float32x16.broadcast(states, at + np.uint64(k))
        total = float32x16.multiply_add(x, float32x16.load(weights, j), total)
        j += np.uint64(16)
    float32x16.store(sums, to, total)


@inline
def _lstm(sums, s, width, cells, states, h):
    """Write the next cells and states, sixteen at a time, from what is in the gates."""
    for i in range(0, width, 16):
        enter = sigmoid(float32x16.load(sums, np.uint64(s + i)))
        keep = sigmoid(float32x16.load(sums, np.uint64(s + width + i)))
        new = tanh(float32x16.load(sums, np.uint64(s + 2 * width + i)))
        show = sigmoid(float32x16.load(sums, np.uint64(s + 3 * width + i)))
        kept = float32x16.multiply(keep, float32x16.load(cells, np.uint64(h + i)))
        cell = float32x16.add(kept, float32x16.multiply(enter, new))
        float32x16.store(cells, np.uint64(h + i), cell)
        float32x16.store(states, np.uint64(h + i), float32x16.multiply(show, tanh(cell)))


@inline
def _gru(sums, s, width, news, states, h):
    """The same; news: what the input adds to the new states."""
    for i in range(0, width, 16):
        reset = sigmoid(float32x16.load(sums, np.uint64(s + i)))
        keep = sigmoid(float32x16.load(sums, np.uint64(s + width + i)))
        product = float32x16.multiply(reset, float32x16.load(sums, np.uint64(s + 2 * width + i)))
        new = tanh(float32x16.add(float32x16.load(news, np.uint64(h + i)), product))
        before = float32x16.load(states, np.uint64(h + i))
        # (1 - keep) new + keep before
        now = float32x16.add(new, float32x16.multiply(keep, float32x16.subtract(before, new)))
        float32x16.store(states, np.uint64(h + i), now)


@jit
def _scan(given, weights, bias, hidden, cell, states, others, sums, out, size, first, last):
    """Images of out, flat (N, places (+ 1), hidden); given: flat (N, places, gates * hidden), of the input.

    weights: flat (gates, blocks, hidden, 16). bias: (gates * hidden,). hidden, cell: flat, the first states. states,
    others, sums: scratch, flat (N, width), (N, width) and (N, gates, width), width = blocks * 16; others: the cells of
    an LSTM, what a GRU's new states are made of. An LSTM's last cell comes behind its places.
    """
    size = Sizes(*size)
    kind, count = size.kind, size.hidden
    gates = 4 if kind == 0 else 3 if kind == 1 else 1
    rows = size.places + 1 if kind == 0 else size.places
    width, blocks = size.blocks * 16, gates * size.blocks
    own, step = np.uint64(blocks * 16), np.uint64(count * 16)
    for begin in range(first, last, 6):
        end = min(begin + 6, last)
        for n in range(begin, end):
            for i in range(width):
                states[n * width + i] = hidden[n * size.hidden_step + i] if i < count else np.float32(0)
                inside = kind == 0 and i < count
                others[n * width + i] = cell[n * size.cell_step + i] if inside else np.float32(0)
        w = np.uint64(width)
        at = np.uint64(begin * width)
        all_at = (at, at + w, at + w + w, at + w + w + w, at + w + w + w + w, at + w + w + w + w + w)
        for turn in range(size.places):
            place = size.places - 1 - turn if size.backwards else turn
            if end - begin == 6:
                for block in range(blocks):
                    to = np.uint64(begin * blocks * 16 + block * 16)
                    _six_images(states, all_at, count, weights, np.uint64(block) * step, sums, to, own)
            else:
                for n in range(begin, end):
                    at, block = np.uint64(n * width), 0
                    while block < blocks:
                        to = np.uint64((n * blocks + block) * 16)
                        if block + 4 <= blocks:
                            _four_blocks(states, at, count, weights, np.uint64(block) * step, step, sums, to)
                            block += 4
                        else:
                            _one_block(states, at, count, weights, np.uint64(block) * step, sums, to)
                            block += 1
            for n in range(begin, end):
                h, s = n * width, n * blocks * 16
                x = (n * size.places + place) * gates * count
                for gate in range(gates):
                    # Parts of arrays from 0 on: no index can be negative, so that these loops are of vectors.
                    sum_ = sums[s + gate * width : s + gate * width + count]
                    add = given[x + gate * count : x + (gate + 1) * count]
                    own_bias = bias[gate * count : (gate + 1) * count]
                    if kind == 1 and gate == 2:
                        new = others[h : h + count]
                        for i in range(count):
                            sum_[i] += own_bias[i]
                            new[i] = add[i]
                    else:
                        for i in range(count):
                            sum_[i] = add[i] + (sum_[i] + own_bias[i])
                if kind == 0:
                    _lstm(sums, s, width, others, states, h)
                elif kind == 1:
                    _gru(sums, s, width, others, states, h)
                else:
                    for i in range(0, width, 16):
                        total = float32x16.load(sums, np.uint64(s + i))
                        made = tanh(total) if kind == 2 else float32x16.maximum(total, float32x16.zero())
                        float32x16.store(states, np.uint64(h + i), made)
                y = (n * rows + place) * count
                for i in range(count):
                    out[y + i] = states[h + i]
        if kind == 0:
            for n in range(begin, end):
                y = (n * rows + size.places) * count
                for i in range(count):
                    out[y + i] = others[n * width + i]


def _expand_kernel(expand: Any) -> Any:
    """Return the kernel that makes float32 blocks of weights of few bits, see `FewBitWeight`."""

    def expand_blocks(packed, length, per_word, to, first, last):
        for block in range(first, last):
            expand(packed, block, length, per_word, to[block * length * 16 : (block + 1) * length * 16])

    expand_blocks.__name__ = expand_blocks.__qualname__ = f"expand_blocks_{expand.py_func.__name__}"
    return jit(expand_blocks)


class Recurrence:
    """One layer of a recurrent network, in one direction.

    kind: of GATES. weight: (gates * hidden, hidden, 1, 1), float32 or of few bits with gates as groups. bias: float32
    (gates * hidden,) or None, added to the products with the state. backwards: whether the last place comes first.
    """

    def __init__(
        self, kind: str, weight: np.ndarray | FewBitWeight | CodedWeight, bias: np.ndarray | None, backwards: bool
    ):
        self.kind, self.backwards = kind, backwards
        rows, self.hidden = int(weight.shape[0]), int(weight.shape[1])
        self.blocks = -(-self.hidden // LANES)
        self.bias = np.zeros(rows, np.float32) if bias is None else bias
        self._few: FewBitWeight | CodedWeight | None = None
        if isinstance(weight, np.ndarray):
            self._weights = filter_lanes(weight, GATES[kind]).reshape(-1)
            release(weight)
        else:
            self._few = weight
            self._expand = _expand_kernel(weight.expand)

    def _floats(self) -> np.ndarray:
        """Return the weights as flat `filter_lanes` of gates."""
        if self._few is None:
            return self._weights
        few, blocks = self._few, GATES[self.kind] * self.blocks
        opened = empty((blocks * self.hidden * LANES,), np.float32)
        run_rows(self._expand, blocks, opened.size // 4, tuple(few.packed), self.hidden, few.per_word, opened)
        return opened

    def __call__(self, given: np.ndarray, hidden: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Return the hidden states at all places, and behind them the last cell of an LSTM, (N, 1, places (+ 1), H).

        given: float32 (N, 1, places, gates * H). hidden, cell: the first states, (N, H), or (H,) for all images.
        """
        n, _, places, _ = given.shape
        rows = places + 1 if self.kind == "lstm" else places
        out = empty((n, 1, rows, self.hidden), np.float32)
        states, others = (empty((n, self.blocks * LANES), np.float32) for _ in range(2))
        gates = GATES[self.kind]
        sums = empty((n, gates * self.blocks * LANES), np.float32)
        hidden_step, cell_step = (self.hidden if start.ndim > 1 else 0 for start in (hidden, cell))
        kind, backwards = _KINDS[self.kind], int(self.backwards)
        size = Sizes(kind, places, self.hidden, self.blocks, hidden_step, cell_step, backwards)
        flat = [x.reshape(-1) for x in (given, self._floats(), self.bias, hidden, cell, states, others, sums, out)]
        work = n * places * gates * self.blocks * (self.hidden * 2 + 50)
        run_rows(_scan, n, work, *flat, tuple(size), multiple=6)
        return out
