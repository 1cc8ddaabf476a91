"""Python code that a network may have: what looks at shapes runs, what looks at data is refused with its line."""

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conversion import check, images
from torch import nn

import bnn
from bnn.converter import ConversionError
from bnn.layers import QuantLinear
from bnn.quantizers import SteSign, XnorWeight


class Program(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run
        self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 5)
        self.bits = QuantLinear(12, 12, weight_quantizer=XnorWeight, input_quantizer=SteSign)

    def forward(self, x):
        return self.b(self.run(self, self.a(x)))


def on_shapes(m, x):
    assert x.shape[-1] % 4 == 0, "features"
    parts = [x[:, i : i + 4] * (i + 1) for i in range(0, x.size(1), 4)]
    if x.ndim == 2 and x.shape[1] > 3:
        parts.reverse()
    return torch.cat(parts, 1) * int(x.shape[1]) ** -0.5


def made_here(m, x):
    return nn.LayerNorm(12)(nn.Sequential(nn.Hardtanh(), nn.Identity())(x))


def rows(m, x):
    x = F.batch_norm(x, m.b.weight[0, :3], m.b.weight[1, :3].abs() + 0.5)
    return F.layer_norm(F.linear(x, m.b.weight[:3, :3]), (3,)).relu()


def behind(x):
    return F.gelu(x * 2) + 1


def heads(x):
    n, t, c = x.shape
    q = x.transpose(0, 1).reshape(t, 2 * n, c // 2).transpose(0, 1)  # as nn.MultiheadAttention has them
    scores = torch.bmm(q, q.transpose(1, 2) * 0.5).softmax(-1)
    return torch.bmm(scores, q).transpose(0, 1).reshape(t, n, c).transpose(0, 1)


def windows(m, x):
    """Attention within two windows of an image, counted as images, under a bias for all and a mask for each."""
    q = x.view(-1, 2, 3, 2).transpose(1, 2).reshape(-1, 1, 3, 2)
    mask = torch.arange(18.0).view(2, 1, 3, 3).repeat(len(x), 1, 1, 1) / 9
    scores = q @ q.transpose(-2, -1) * 0.5 + m.b.weight[:3, :3] + mask
    return (scores.softmax(-1) @ q).view(-1, 3, 2, 2).transpose(1, 2).flatten(1)


def other_mask_for_each_image(m, x):
    q = x.view(-1, 2, 3, 2).flatten(0, 1)
    return (q + torch.arange(2.0 * len(x))[:, None, None]).view(-1, 12)


def stretched(m, x):
    rows = torch.arange(3.0)[:, None]
    y = (x[:, None, None] - rows).relu() * torch.ones(2, 1, 1) / torch.tensor([1.0, 2.0])[:, None, None]
    return y.sum((1, 2)) + (rows - x[:, None]).amax(1) + (x[:, None] + rows / 2).flatten(1)[:, 12:24]


def through_data(m, x):
    kept, same = x * 2, x
    x.data = torch.where(x.data >= 0, 1.0, -1.0)
    return m.bits(x) + kept + same


SPELLED = {
    "through data": through_data,
    "on shapes": on_shapes,
    "made here": made_here,
    "by keyword": lambda m, x: torch.clamp(input=m.bits(x), min=-1, max=torch.tensor(1.0)),
    "composed": lambda m, x: F.tanhshrink(x.clip(-2, 2).swapaxes(0, 1).T.subtract(0.5).true_divide(2)),
    "batch norm": lambda m, x: F.batch_norm(x, m.b.weight[0], m.b.weight[1].abs() + 0.5),
    "unpacked": lambda m, x: torch.stack([*x.view(*x.shape[:-1], 3, 4).unbind(1)], 2).flatten(1),
    "softmax without axis": lambda m, x: F.softmax(x),
    "tokens in the batch": lambda m, x: rows(m, x.view(-1, 3, 4).transpose(1, 2).reshape(-1, 3)).view(len(x), -1),
    "batch behind": lambda m, x: behind(x.T.contiguous().T.view(-1, 3, 4).transpose(0, 1)).transpose(0, 1).flatten(1),
    "heads in the batch": lambda m, x: heads(x.view(-1, 3, 4)).flatten(1),
    "windows in the batch": windows,
    "stretched": stretched,
    "einsum": lambda m, x: torch.einsum("nk,ok->no", x, m.a.weight),
    "relu of every kind": lambda m, x: F.relu6(F.relu(x) + x.relu() + torch.relu_(x.clone()) + nn.ReLU()(x)),
}


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("name", SPELLED)
def test_what_runs_converts(name):
    torch.manual_seed(0)
    check(Program(SPELLED[name]).eval(), images(5, 12))


def by_number(m, x):
    return x * float(x.max())


def by_array(m, x):
    return x * torch.from_numpy(np.sign(x.numpy()))


def by_branch(m, x):
    return x if (x > 0).all() else -x


@pytest.mark.parametrize("run", [by_number, by_array, by_branch])
def test_what_depends_on_data_is_refused_with_its_line(run):
    line = inspect.getsourcelines(run)[1] + 1
    with pytest.raises(ConversionError, match=rf"test_convert_programs\.py:{line}\)"):
        bnn.convert(Program(run).eval(), images(1, 12))


def test_a_refused_operation_is_named_with_its_line():
    def run(m, x):
        return torch.special.erfcx(x)

    line = inspect.getsourcelines(run)[1] + 1
    with pytest.raises(ConversionError, match=rf"^special_erfcx: .*\(test_convert_programs\.py:{line}\)$"):
        bnn.convert(Program(run).eval(), images(1, 12))


def test_code_that_asks_for_the_number_of_images():
    other = {1: lambda x: x * 2, 5: torch.tanh}
    for count, change in other.items():
        program = Program(lambda m, x, n=count, f=change: f(x) if len(x) == n else x)
        with pytest.raises(ConversionError, match="only what does not depend on the number of images"):
            bnn.convert(program.eval(), images(1, 12))


def test_constants_that_tell_images_apart_are_refused():
    with pytest.raises(ConversionError, match="changes the batch"):
        bnn.convert(Program(other_mask_for_each_image).eval(), images(1, 12))


@pytest.mark.parametrize("counted", ["as images", "before images"])
def test_levels_of_tokens_counted_as_images_are_compared(counted):
    torch.manual_seed(0)

    def run(m, x):
        shifts = torch.arange(3.0)[:, None]
        if counted == "as images":
            return m.bits((x[:, None] - shifts).flatten(0, 1)).view(-1, 3, 12).sum(1)
        return m.bits((x[None].repeat(3, 1, 1) - shifts[:, None]).flatten(0, 1)).view(3, -1, 12).movedim(0, 1).sum(1)

    network = Program(run).eval()
    report = bnn.check_parity(network, bnn.convert(network, images(1, 12)), images(5, 12))
    assert report.ok
    compared = {step.source: step.elements for step in report.steps}
    # In the order of PyTorch's tokens where those of an image follow one another; elsewhere only what follows is.
    assert compared.get("bits input") == (5 * 3 * 12 if counted == "as images" else None)


def test_a_network_that_does_not_run_on_one_image():
    torch.manual_seed(0)
    check(Program(lambda m, x: x.squeeze() * torch.ones(len(x), 12).unbind(1)[0][:, None]).eval(), images(5, 12))


def test_nothing_is_left_on_the_network():
    torch.manual_seed(0)
    network = Program(lambda m, x: m.bits(x)).eval()
    before = [{**vars(module)} for module in network.modules()]
    bnn.check_parity(network, bnn.convert(network, images(1, 12)), images(3, 12))
    assert [{**vars(module)} for module in network.modules()] == before


class BinarizedThroughData(nn.Linear):
    def forward(self, x):
        x.data = torch.where(x.data >= 0, 1.0, -1.0)
        if not hasattr(self.weight, "org"):
            self.weight.org = self.weight.data.clone()
        self.weight.data = torch.where(self.weight.org >= 0, 1.0, -1.0)
        return F.linear(x, self.weight, self.bias)


def test_signs_and_weights_given_to_data_are_bits_and_inputs_stay():
    torch.manual_seed(0)
    network = nn.Sequential(BinarizedThroughData(12, 70), nn.BatchNorm1d(70), BinarizedThroughData(70, 5)).eval()
    x = images(40, 12)
    before = x.clone()
    packed = bnn.convert(network, x, require_bits=True)
    report = bnn.check_parity(network, packed, x)
    assert report.ok and all(layer.on_bits for layer in report.explanation.layers), report
    assert torch.equal(x, before)


def test_exported_programs():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    ).eval()  # fmt: skip
    x = images(4, 3, 8, 8)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    packed, report = check_program(program, x)
    np.testing.assert_array_equal(packed(x.numpy()), bnn.convert(network, x)(x.numpy()))
    assert [row.source for row in report.steps] == ["2.0.relu", "2.1.flatten", "2.2.linear"]
    with pytest.raises(ConversionError, match="exported for batches of 4 alone"):
        bnn.convert(torch.export.export(network, (x,)), x)


def check_program(program, x):
    packed = bnn.convert(program, x)
    report = bnn.check_parity(program, packed, x)
    assert report.ok, str(report)
    return packed, report
