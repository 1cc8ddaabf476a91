"""nn.LSTM, nn.GRU and nn.RNN convert as they stand: compared with PyTorch, their states as well."""

import itertools
import re
from functools import partial

import pytest
import torch
from conversion import check
from torch import Tensor, nn
from torch.nn.utils import parametrize

import bnn
from bnn.layers import QuantLinear
from bnn.quantizers import (
    AbsmaxActivation,
    AbsmeanTernary,
    LsqActivation,
    LsqWeight,
    SteSign,
    TernaryWeight,
    XnorWeight,
)

KINDS = [nn.LSTM, nn.GRU, nn.RNN]
BATCH, TIME, WIDTH, HIDDEN = 5, 4, 6, 7


def flat(made: tuple) -> tuple[Tensor, ...]:
    """Return an output and its states as one tuple."""
    y, states = made
    return (y, *states) if isinstance(states, tuple) else (y, states)


class AsTuple(nn.Module):
    """A recurrent layer with its states as outputs, as PyTorch has them; sequences first within if not batch_first."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return flat(self.layer(x if self.layer.batch_first else x.transpose(0, 1)))


def sequences() -> Tensor:
    return torch.randn(BATCH, TIME, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("bidirectional", "bias", "batch_first"), list(itertools.product((False, True), repeat=3)))
def test_layers_and_their_last_states(kind, layers, bidirectional, bias, batch_first, tmp_path):
    torch.manual_seed(0)
    dropout = 0.5 * (layers > 1)
    options = {"bias": bias, "batch_first": batch_first, "dropout": dropout, "bidirectional": bidirectional}
    layer = kind(WIDTH, HIDDEN, layers, **options)
    packed, _ = check(AsTuple(layer).eval(), sequences(), tmp_path, 1e-6)
    assert packed.batch_axes[1:] == [1] * (len(packed.outputs) - 1)  # (layers, N, hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_alone_returns_its_states_in_one_tuple(kind):
    torch.manual_seed(0)
    layer = kind(WIDTH, HIDDEN, 2, batch_first=True).eval()
    x = sequences()
    packed = bnn.convert(layer, x)
    assert bnn.check_parity(layer, packed, x).ok
    with torch.no_grad():
        expected = flat(layer(x))
    for ours, theirs in zip(packed(x.numpy()), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-5, atol=1e-6)


def test_relu():
    torch.manual_seed(0)
    check(AsTuple(nn.RNN(WIDTH, HIDDEN, nonlinearity="relu", batch_first=True)).eval(), sequences(), None, 1e-6)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("bias", [False, True])
def test_projections(bias, tmp_path):
    torch.manual_seed(0)
    layer = nn.LSTM(WIDTH, HIDDEN, 2, bias=bias, batch_first=True, bidirectional=True, proj_size=3)
    check(AsTuple(layer).eval(), sequences(), tmp_path, 1e-6)


class ProjectedFromStates(nn.Module):
    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.layer = nn.LSTM(WIDTH, HIDDEN, batch_first=True, proj_size=3)
        self.start = nn.Parameter(torch.randn(1, 1, 3)) if learned else None

    def forward(self, x: Tensor, h: Tensor | None = None, c: Tensor | None = None) -> tuple[Tensor, ...]:
        h = self.start.expand(-1, len(x), -1).contiguous() if h is None else h[None]
        y, (h, c) = self.layer(x, (h, torch.zeros(1, len(x), HIDDEN) if c is None else c[None]))
        return y, h[0], c[0]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("learned", [False, True])
def test_projections_of_first_states(learned):
    torch.manual_seed(0)
    x, h, c = sequences(), torch.randn(BATCH, 3), torch.randn(BATCH, HIDDEN)
    model = ProjectedFromStates(learned).eval()
    check(model, x if learned else (x, h, c), None, 1e-5)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_first_state_that_no_projection_gives_is_refused():
    model = ProjectedFromStates(learned=True).eval()
    nn.init.zeros_(model.layer.weight_hr_l0[1])
    with pytest.raises(bnn.ConversionError, match=r"projection \(proj_size\) has rows that depend on others"):
        bnn.convert(model, sequences())


class FromStates(nn.Module):
    """The first states are inputs (N, layers, hidden), or parameters; those of an LSTM's cells may be zeros."""

    def __init__(self, kind: type[nn.RNNBase], learned: bool = False) -> None:
        super().__init__()
        self.layer = kind(WIDTH, HIDDEN, 2, batch_first=True)
        self.start = nn.Parameter(torch.randn(2, 1, HIDDEN)) if learned else None

    def forward(self, x: Tensor, h: Tensor | None = None, c: Tensor | None = None) -> tuple[Tensor, ...]:
        h = self.start.expand(-1, len(x), -1).contiguous() if h is None else h.transpose(0, 1).contiguous()
        if isinstance(self.layer, nn.LSTM):
            cell = torch.zeros_like(h) if c is None else c.transpose(0, 1).contiguous()
            y, (h, c) = self.layer(x, (h, cell))
            return y, h.transpose(0, 1), c[-1]
        y, h = self.layer(x, h)
        return y, h[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", ["learned", "hidden", "hidden and cell"])
def test_first_states(kind, given):
    torch.manual_seed(0)
    x, h, c = sequences(), torch.randn(BATCH, 2, HIDDEN), torch.randn(BATCH, 2, HIDDEN)
    model = FromStates(kind, given == "learned").eval()
    if given == "hidden and cell" and kind is not nn.LSTM:
        return
    check(model, {"learned": x, "hidden": (x, h), "hidden and cell": (x, h, c)}[given], None, 1e-6)


class Tagger(nn.Module):
    """Tokens, a recurrent layer, and a score of each token from signs of its state."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)
        self.layer = kind(WIDTH, HIDDEN, batch_first=True, bidirectional=True)
        self.head = QuantLinear(2 * HIDDEN, 3, bias=False, weight_quantizer=XnorWeight, input_quantizer=SteSign)

    def forward(self, tokens: Tensor) -> Tensor:
        y, _ = self.layer(self.table(tokens))
        return self.head(y)


@pytest.mark.parametrize("kind", KINDS)
def test_between_an_embedding_and_a_binary_layer(kind):
    torch.manual_seed(0)
    model = Tagger(kind).eval()
    tokens = torch.randint(0, 11, (BATCH, TIME), generator=torch.Generator().manual_seed(0))
    packed = bnn.convert(model, tokens)
    assert bnn.check_parity(model, packed, tokens).ok
    (head,) = (layer for layer in bnn.converter.explain(model, tokens).layers if layer.place == "head")
    assert head.on_bits


@pytest.mark.parametrize(("quantizer", "bits"), [(TernaryWeight, 2), (XnorWeight, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_few_values_are_stored_as_bits(kind, quantizer, bits):
    torch.manual_seed(0)
    layer = kind(64, 64, batch_first=True)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        parametrize.register_parametrization(layer, name, quantizer())
    x = torch.randn(BATCH, TIME, 64, generator=torch.Generator().manual_seed(1))
    layer(x)[0].sum().backward()  # what it has made of its weights has a gradient from now on
    assert bool(layer.parametrizations.weight_hh_l0.original.grad.any())
    model = AsTuple(layer).eval()
    packed, _ = check(model, x, None, 1e-5)
    stored = {
        spec.op: sum(t.nbytes for name, t in spec.tensors.items() if name.startswith("bits")) for spec in packed.steps
    }
    weights = layer.weight_hh_l0.numel()
    assert stored["recurrent"] == stored["float_conv"] == bits * weights // 8
    layers = bnn.converter.explain(model, x).layers
    assert [(found.place, found.weight_bits, found.input_bits) for found in layers] == [("layer", bits, None)] * 2


def test_weights_are_stored_once_however_long_the_sequence():
    torch.manual_seed(0)
    model = AsTuple(nn.GRU(WIDTH, HIDDEN, batch_first=True)).eval()
    short, long = (bnn.convert(model, torch.randn(1, length, WIDTH)) for length in (3, 100))
    assert len(short.steps) == len(long.steps)
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert weights <= short.nbytes <= weights + 100
    assert weights <= long.nbytes <= weights + 1000
    x = torch.randn(3, 100, WIDTH)
    assert bnn.check_parity(model, long, x).ok


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("batch_first", [False, True])
def test_short_sequences(length, batch_first):
    """As many places as images of the trial among them: which axis is which is told all the same."""
    torch.manual_seed(0)
    model = AsTuple(nn.LSTM(WIDTH, HIDDEN, 2, batch_first=batch_first, bidirectional=True)).eval()
    check(model, torch.randn(BATCH, length, WIDTH), None, 1e-6)


class Folded(nn.Module):
    """Returns the states of several layers as if they were images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(WIDTH, HIDDEN, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[1].reshape(len(x), 3, HIDDEN)


class FoldedInput(nn.Module):
    """Treats the two halves of each sequence as sequences of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(WIDTH, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(-1, TIME // 2, WIDTH))[0].reshape(len(x), TIME, HIDDEN)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: nn.LSTM(WIDTH, HIDDEN),
            "takes sequences (T, N, K), but the first axis of a network's input is its batch",
        ),
        (Folded, "changes the batch"),
        (FoldedInput, "changes the batch"),
    ],
)
def test_what_is_refused(make, reason):
    with pytest.raises(bnn.ConversionError, match=re.escape(reason)):
        bnn.convert(make().eval(), sequences())


class Cells(nn.Module):
    """An LSTM or a GRU of one's own, of layers that quantize weights, inputs and hidden states; state in and out."""

    def __init__(self, gates, weight, given):
        super().__init__()
        self.taken = QuantLinear(WIDTH, gates * HIDDEN, weight_quantizer=weight, input_quantizer=given)
        self.kept = QuantLinear(HIDDEN, gates * HIDDEN, weight_quantizer=weight, input_quantizer=given)
        self.step = self.lstm if gates == 4 else self.gru

    def lstm(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (self.taken(x) + self.kept(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def gru(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        (r, z, n), (hr, hz, hn) = self.taken(x).chunk(3, 1), self.kept(h).chunk(3, 1)
        z = (z + hz).sigmoid()
        return (1 - z) * (n + (r + hr).sigmoid() * hn).tanh() + z * h, c

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = []
        for t in range(x.shape[1]):
            h, c = self.step(x[:, t], h, c)
            made.append(h)
        return torch.stack(made, 1), h, c


BOTH_SIDES = {
    "1/1": (XnorWeight, SteSign),
    "t/8": (AbsmeanTernary, AbsmaxActivation),
    "8/8": (partial(LsqWeight, bits=8), partial(LsqActivation, bits=8, signed=True)),
}


@pytest.mark.parametrize("policy", BOTH_SIDES)
@pytest.mark.parametrize("gates", [3, 4])
def test_cells_whose_states_are_quantized_multiply_bits(gates, policy):
    torch.manual_seed(0)
    cells = Cells(gates, *BOTH_SIDES[policy])
    x, h, c = sequences(), torch.randn(BATCH, HIDDEN), torch.randn(BATCH, HIDDEN)
    cells(x, h, c)  # learned steps begin with what they see
    cells.eval()
    packed = bnn.convert(cells, (x, h, c), require_bits=True)
    layers = bnn.converter.explain(cells, (x, h, c)).layers
    assert len(layers) == 2 * TIME
    assert all(layer.on_bits for layer in layers)
    report = bnn.check_parity(cells, packed, (x, h, c))
    assert report.ok
    assert report.first_difference is None
