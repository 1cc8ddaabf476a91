"""Inputs that are sums of several scaled terms, with offsets: the packed network has PyTorch's very numbers."""

from functools import partial

import bnn_kernels as bk
import numpy as np
import pytest
import torch
from conversion import check, images, upset
from torch import nn

import bnn
from bnn.converter import ConversionError
from bnn.layers import QuantConv1d, QuantConv2d, QuantLinear
from bnn.planes import Planes, Term, sign_bits
from bnn.quantizers import AdaBinActivation, AdaBinWeight, FullPrecision, LqActivation, LqWeight, Quantizer, XnorWeight


class Bases(Quantizer):
    """ABC-Net's activations: sum_n beta_n sign(x + v_n), with bases of any sign and an offset."""

    elementwise = True

    def __init__(self, betas=(0.7, 0.4, 0.2), shifts=(-0.5, 0.0, 0.6), offset=None):
        super().__init__()
        self.betas, self.shifts = torch.tensor(betas), shifts
        self.offset = None if offset is None else torch.tensor(offset)

    def planes(self, x):
        terms = (Term(sign_bits(x + v), True, (1,), b) for b, v in zip(self.betas, self.shifts, strict=True))
        return Planes(tuple(terms), self.offset)

    def forward(self, x):
        return self.planes(x).value()


class Mixed(Quantizer):
    """Two terms of unlike planes: a sign, and two bits."""

    elementwise = True

    def planes(self, x):
        code = (x.clamp(0, 1.2) / 0.4).floor().int()
        bits = torch.stack([code % 2 == 1, code >= 2])
        return Planes((Term(sign_bits(x), True, (1,), torch.tensor(0.3)), Term(bits, False, (1, 2), torch.tensor(0.1))))

    def forward(self, x):
        return self.planes(x).value()


def moved(quantizer):
    """An AdaBin or LQ-Net quantizer whose parameters are not those of the start."""
    for parameter in quantizer.parameters():
        parameter.data.uniform_(0.3, 0.9)
    for buffer in quantizer.buffers():
        if buffer.dtype == torch.float32:
            buffer.uniform_(-0.2, 0.9)
    return quantizer


INPUTS = {
    "adabin": AdaBinActivation,
    "lq2": partial(LqActivation, 2),
    "lq3": partial(LqActivation, 3),
    "bases": Bases,
    "bases and offset": partial(Bases, offset=-0.35),
    "mixed": Mixed,
}
WEIGHTS = {"xnor": XnorWeight, "adabin": AdaBinWeight, "lq2": partial(LqWeight, 2)}


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_pair_gives_the_very_numbers(weight, given, tmp_path):
    torch.manual_seed(0)
    quantized = {"weight_quantizer": WEIGHTS[weight], "input_quantizer": INPUTS[given]}
    network = nn.Sequential(
        QuantConv2d(6, 10, 3, padding=(1, 2), stride=2, **quantized),
        nn.BatchNorm2d(10),
        QuantConv2d(10, 8, 3, groups=2, bias=False, **quantized),
        nn.Flatten(),
        QuantLinear(8 * 3 * 4, 7, **quantized),
    )
    network(images(4, 6, 9, 9))  # learned bases are fitted in training mode
    for module in network.modules():
        if isinstance(module, Quantizer):
            moved(module)
    packed, report = check(upset(network), images(6, 6, 9, 9), tmp_path)
    assert report.max_difference == 0
    assert sum(row.different for row in (*report.steps, *report.free.steps)) == 0
    assert {step.op for step in packed.steps} <= {"pack", "binary_conv", "binary_linear"}


def test_a_constant_offset_becomes_part_of_integer_thresholds():
    layer = partial(QuantConv2d, weight_quantizer=XnorWeight, input_quantizer=AdaBinActivation)
    network = nn.Sequential(layer(6, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2), layer(8, 4, 3))
    for module in network.modules():
        if isinstance(module, AdaBinActivation):
            moved(module)
    packed, _ = check(upset(network), images(6, 6, 12, 12))
    assert [step.attrs.get("output") for step in packed.steps] == [None, "bits", None, "float"]
    assert "input_offset" not in packed.steps[1].attrs


def test_an_offset_of_weights_is_one_number_a_filter():
    """One bit a weight in the file, for binary and for float inputs."""
    for given in (AdaBinActivation, FullPrecision):
        torch.manual_seed(0)
        quantized = {"weight_quantizer": AdaBinWeight, "input_quantizer": given, "bias": False}
        network = nn.Sequential(
            QuantConv2d(64, 32, 3, groups=2, **quantized), nn.Flatten(), QuantLinear(32 * 4, 16, **quantized)
        )
        packed, _ = check(network.eval(), images(5, 64, 4, 4))
        parts = 2 * (1 if given is FullPrecision else 2)
        layers = [step for step in packed.steps if "bits.0" in step.tensors]
        for step, weights in zip(layers, (32 * 32 * 9, 16 * 32 * 4), strict=True):
            filters = step.attrs["shape"][0]
            stored = sum(t.nbytes for name, t in step.tensors.items() if name.startswith(("bits.", "scale.")))
            assert stored == weights / 8 + parts * 4 * filters
        assert {cost.precision for cost in packed.costs()} - {""} <= {"W1A1", "W1A32"}


def test_sequences_and_a_quantizer_on_its_own():
    torch.manual_seed(1)
    layer = partial(QuantConv1d, weight_quantizer=XnorWeight)
    network = nn.Sequential(
        moved(AdaBinActivation()), layer(4, 6, 3, padding=1), moved(LqActivation(2)), layer(6, 4, 3, padding=2),
        moved(LqActivation(3)), nn.AvgPool1d(2),
    )  # fmt: skip
    check(network.eval(), images(5, 4, 20))


def test_other_scales_than_one_and_falling_values_are_refused():
    class Falls(Mixed):
        def planes(self, x):
            return Planes((Term(sign_bits(x), True, (1,), torch.tensor(-0.3)),))

    class ByChannel(Mixed):
        def planes(self, x):
            return Planes((Term(sign_bits(x), True, (1,), torch.ones(1, x.shape[1], 1, 1)),))

    class Wide(Mixed):
        def planes(self, x):
            return Planes(tuple(Term(sign_bits(x - i), True, (1,), torch.tensor(0.1)) for i in range(9)))

    for given, words in ((Falls, "do not rise"), (ByChannel, "other scales"), (Wide, "9 bit planes")):
        layer = QuantConv2d(3, 3, 3, weight_quantizer=XnorWeight, input_quantizer=given)
        with pytest.raises(ConversionError, match=f"^0: .*{words}"):
            bnn.convert(nn.Sequential(layer).eval(), images(1, 3, 6, 6))
    layer = QuantConv2d(3, 4, 3, padding=1, pad_value=1, weight_quantizer=XnorWeight, input_quantizer=AdaBinActivation)
    with pytest.raises(ConversionError, match="pad_value"):
        bnn.convert(nn.Sequential(layer).eval(), images(1, 3, 6, 6))


def test_steps_of_several_terms_refuse_what_does_not_fit():
    network = nn.Sequential(QuantConv2d(3, 4, 3, padding=1, weight_quantizer=XnorWeight, input_quantizer=Bases))
    packed = bnn.convert(network.eval(), images(1, 3, 6, 6))

    def changed(**attrs):
        steps = [bk.StepSpec(**{**vars(step), "attrs": dict(step.attrs)}) for step in packed.steps]
        steps[1].attrs.update(attrs)
        return bk.PackedModel(packed.input_shape, steps)

    term = {"multipliers": [1], "signed": True}
    for attrs, words in (
        ({"input_terms": [term] * 2}, "terms of 2 planes, got 3"),
        ({"input_terms": [term] * 9}, "1 to 8 terms"),
        ({"input_terms": [{}] * 3}, "malformed term"),
        ({"input_offset": True}, r"scale\.3"),
        ({"input_offset": 1}, "must be bool"),
        ({"pad_level": 1}, "padded with zeros only"),
        ({"output": "int"}, "one scale"),
    ):
        with pytest.raises(bk.PlanError, match=words):
            changed(**attrs)
    np.testing.assert_array_equal(changed()(images(2, 3, 6, 6).numpy()), packed(images(2, 3, 6, 6).numpy()))
    with pytest.raises(bk.PlanError, match="one value for each of 8 codes"):
        unpack = bk.StepSpec("unpack", packed.steps[0].outputs, ["y"], {}, {"values": np.zeros(4, np.float32)})
        bk.PackedModel(packed.input_shape, [packed.steps[0], unpack])
