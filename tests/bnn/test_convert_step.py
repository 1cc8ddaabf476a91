"""Networks that compute step by step, packed: the tokens of a decoder, recurrent layers, and what is refused."""

import bnn_kernels as bk
import numpy as np
import pytest
import torch
from torch import nn

import bnn
from bnn.layers import CachedAttention, QuantLinear
from bnn.models import BitLinearDecoder
from bnn.quantizers import AbsmaxActivation, AbsmeanTernary, SteSign, XnorWeight

WIDTHS = {
    "t/8": {"weight_quantizer": AbsmeanTernary, "input_quantizer": AbsmaxActivation},
    "1/1": {"weight_quantizer": XnorWeight, "input_quantizer": SteSign},
    "fp32": {},
}
# Logits this near to each other, as a share of their range, may change places by rounding.
NEAR = 1e-3


def decoder(**options):
    torch.manual_seed(0)
    model = BitLinearDecoder(
        **{"num_classes": 40, "context": 40, "width": 32, "layers": 2, "heads": 4, "hidden": 48} | options
    )
    for parameter in model.parameters():  # as far from its start as a trained one
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_packed_decoder_generates_the_tokens_of_pytorch(width, tmp_path):
    """Three times the context: caches are filled, left behind and begun anew."""
    model = decoder(**WIDTHS[width])
    packed = bnn.convert_step(model, torch.zeros(1, 1, dtype=torch.int64))
    assert packed.most_steps == 40
    packed.save(tmp_path / "decoder.safetensors")
    loaded = bk.load(tmp_path / "decoder.safetensors")
    start = torch.randint(0, 40, (3, 5), generator=torch.Generator().manual_seed(1))
    expected = model.generate(start, 200)
    found = loaded.generate(start.numpy(), 200)
    assert len(set(expected.flatten().tolist())) > 10  # no cycle of a few
    # Step by step on the same tokens: the same logits, and the same choice unless two are as good as alike.
    state, held = loaded.start(3), model.start(3)
    with torch.no_grad():
        for t in range(40):
            tokens = expected[:, t : t + 1]
            logits, held = model.step(tokens, held)
            made = loaded.step(tokens.numpy(), state)
            assert made.shape == (3, 1, 40)
            best = logits.topk(2).values[:, 0]
            clear = (best[:, 0] - best[:, 1]) > NEAR * (logits.amax() - logits.amin())
            same = torch.from_numpy(made[:, 0].argmax(-1)) == logits[:, 0].argmax(-1)
            assert bool((same | ~clear).all())
            largest = np.abs(logits.numpy()).max()
            assert np.abs(made - logits.numpy()).mean() < (1e-4 if width == "fp32" else 5e-3) * largest
    np.testing.assert_array_equal(found, expected.numpy())


def test_places_in_the_network_keep_their_names():
    packed = bnn.convert_step(decoder(layers=1, **WIDTHS["t/8"]), torch.zeros(1, 1, dtype=torch.int64))
    sources = [source for step in packed.steps for source in step.sources]
    assert "blocks.0.attention.query input" in sources
    assert "blocks.0.feed_forward.down" in sources
    assert len(packed.states) == 3


class Recurrent(nn.Module):
    """h becomes tanh(W x + U h), and the one before is kept too."""

    def __init__(self):
        super().__init__()
        self.taken = QuantLinear(6, 5, weight_quantizer=XnorWeight)
        self.kept = nn.Linear(5, 5)

    def start(self, batch):
        return {"h": torch.zeros(batch, 5), "before": torch.full((batch, 5), 0.5)}

    def step(self, x, state):
        h = torch.tanh(self.taken(x) + self.kept(state["h"]))
        return h + state["before"], {"h": h, "before": state["h"]}


def test_a_recurrent_layer_with_hidden_states():
    torch.manual_seed(0)
    model = Recurrent().eval()
    packed = bnn.convert_step(model, torch.zeros(1, 6))
    assert packed.most_steps is None
    assert [spec.initial for spec in packed.states] == [0.0, 0.5]
    state, held = packed.start(4), model.start(4)
    for _ in range(12):
        x = torch.randn(4, 6)
        with torch.no_grad():
            y, held = model.step(x, held)
        np.testing.assert_allclose(packed.step(x.numpy(), state), y.numpy(), rtol=1e-4, atol=1e-5)


class Positions(nn.Module):
    """A cache that is attended to, with learned positions; `spoil` makes it one that is refused."""

    def __init__(self, spoil=""):
        super().__init__()
        self.spoil = spoil
        self.embedding, self.positions = nn.Embedding(9, 12), nn.Embedding(7, 12)
        self.cached = CachedAttention()

    def start(self, batch):
        empty = torch.zeros(batch, 8, 3, 4)
        if self.spoil == "uneven":
            empty = torch.rand(8, 3, 4).expand(batch, 8, 3, 4)
        if self.spoil == "grows":
            empty = torch.zeros(batch, 1, 3, 4)
        return (torch.zeros(batch, 1, dtype=torch.int64), empty, empty.clone())

    def step(self, x, state):
        place, keys, values = state
        y = (self.embedding(x) + self.positions(place)).unflatten(-1, (3, 4))
        z, new_keys, new_values = self.cached(y, y * 2, y + 1, keys, values, place)
        if self.spoil == "grows":
            new_keys = torch.cat([keys, keys], 1)
        if self.spoil == "old":
            new_keys = keys * 1
        if self.spoil == "reads":
            z = z + keys[:, :1]
        grown = place + (place + 1 if self.spoil == "doubles" else 1)
        return z.flatten(2), (grown, new_keys, new_values)


def test_learned_positions_end_where_their_table_ends():
    torch.manual_seed(0)
    model = Positions().eval()
    packed = bnn.convert_step(model, torch.zeros(1, 1, dtype=torch.int64))
    assert packed.most_steps == 7
    state, held = packed.start(2), model.start(2)
    for t in range(7):
        x = torch.tensor([[t], [8 - t]])
        with torch.no_grad():
            y, held = model.step(x, held)
        np.testing.assert_allclose(packed.step(x.numpy(), state), y.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="has taken 7 steps"):
        packed.step(x.numpy(), state)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("uneven", "tensor 1 of the state begins with different numbers"),
        ("grows", "a state keeps its shape, so a cache is as large as the context from the start"),
        ("doubles", "tensor 0 of the state holds integers, which must grow alike with each step"),
        ("old", "tensor 1 of the state is a cache of CachedAttention"),
        ("reads", "a cache of CachedAttention, is read by something else too"),
    ],
)
def test_states_that_cannot_be_kept_are_refused(spoil, words):
    with pytest.raises(bnn.ConversionError, match=words):
        bnn.convert_step(Positions(spoil).eval(), torch.zeros(1, 1, dtype=torch.int64))


def test_networks_without_steps_are_refused():
    with pytest.raises(bnn.ConversionError, match=r"Linear has no start\(batch\) and step\(x, state\)"):
        bnn.convert_step(nn.Linear(2, 2).eval(), torch.zeros(1, 2))
    with pytest.raises(bnn.ConversionError, match="train mode"):
        bnn.convert_step(Recurrent(), torch.zeros(1, 6))
