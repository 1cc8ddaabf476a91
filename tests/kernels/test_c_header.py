"""A packed model as C99: compiled without a warning, it returns the same numbers, bit for bit."""

import ctypes
import re
import shutil
import subprocess
import sys
from functools import partial

import bnn_kernels as bk
import numpy as np
import pytest
import torch
from bnn_kernels.c_header.header import c_header, write_c_header
from bnn_kernels.c_header.source import Memory, array, number
from torch import nn

import bnn
from bnn import quantizers as q
from bnn.layers import QuantConv2d, QuantLinear
from bnn.models import LeNet5, ResNet8

CC = shutil.which("cc")
FLAGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-shared", "-fPIC"]
WIDTHS = {
    "1/1": (q.XnorWeight, q.SteSign),
    "t/1": (q.TernaryWeight, q.SteSign),
    "4/2": (lambda: q.LsqWeight(bits=4), lambda: q.LsqActivation(bits=2, signed=True)),
    "8/8": (lambda: q.LsqWeight(bits=8), lambda: q.LsqActivation(bits=8, signed=False)),
    "float": (q.FullPrecision, q.FullPrecision),
}


def converted(model, x):
    bnn.calibrate(model.eval(), x)
    return bnn.convert(bnn.models.trained_like(model, x), x)


def answers(packed, x, folder):
    """What the header returns for each image."""
    write_c_header(packed, folder / "net.h", "net")
    wrapper = "void run(const float *x, float *y);\nvoid run(const float *x, float *y) { net_predict(x, y); }\n"
    (folder / "net.c").write_text(f'#include "net.h"\n{wrapper}')
    library = folder / "net.so"
    command = [CC, *FLAGS, "-o", str(library), str(folder / "net.c"), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:2000]
    run = ctypes.CDLL(str(library)).run
    shape = packed(x[:1]).shape[1:]
    found = np.empty((len(x), *shape), np.float32)
    for image, y in zip(x, found, strict=True):
        run(np.ascontiguousarray(image).ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p))
    return found


needs_compiler = pytest.mark.skipif(CC is None or sys.platform == "win32", reason="needs a C compiler")


@needs_compiler
@pytest.mark.parametrize("width", [width for width in WIDTHS if width != "float"])  # its header would have 10 MB
def test_lenet5_answers_the_same(width, tmp_path):
    torch.manual_seed(0)
    weight, given = WIDTHS[width]
    x = torch.randn(8, 1, 28, 28)
    packed = converted(LeNet5(weight_quantizer=weight, input_quantizer=given), x)
    np.testing.assert_array_equal(answers(packed, x.numpy(), tmp_path), packed(x.numpy()))


@needs_compiler
@pytest.mark.parametrize("width", WIDTHS)
def test_a_residual_network_answers_the_same(width, tmp_path):
    """With strides, shortcuts, an average over 64 places and floats that are added."""
    torch.manual_seed(1)
    weight, given = WIDTHS[width]
    x = torch.randn(4, 3, 32, 32)
    packed = converted(ResNet8(weight_quantizer=weight, input_quantizer=given), x)
    np.testing.assert_array_equal(answers(packed, x.numpy(), tmp_path), packed(x.numpy()))


@needs_compiler
def test_shapes_and_paddings(tmp_path):
    """Odd channels, borders of +1, dilation, groups in floats, PReLU, pooling with a border, outputs that are maps."""
    torch.manual_seed(2)
    binary = {"weight_quantizer": q.XnorWeight, "input_quantizer": q.SteSign}
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3, padding=1),
        nn.PReLU(6),
        nn.BatchNorm2d(6),
        QuantConv2d(6, 33, (3, 2), padding=(1, 2), dilation=(1, 2), pad_value=1.0, **binary),
        nn.BatchNorm2d(33),
        nn.MaxPool2d(3, 2, 1),
        QuantConv2d(33, 5, 3, stride=(1, 2), **binary),
        nn.BatchNorm2d(5),
        nn.Hardtanh(),
    )
    x = torch.randn(6, 3, 9, 11)
    packed = converted(model, x)
    np.testing.assert_array_equal(answers(packed, x.numpy(), tmp_path), packed(x.numpy()))


@needs_compiler
def test_zeros_around_a_map_and_levels_behind_a_norm_of_their_own(tmp_path):
    """More padding behind a map than before it, of floats and of levels; a sum that is kept and quantized at once."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            few = {"weight_quantizer": partial(q.LsqWeight, 4), "input_quantizer": partial(q.LsqActivation, 4)}
            self.stem, self.norm, self.pad = nn.Conv2d(3, 8, 2), nn.BatchNorm2d(8), nn.ZeroPad2d((0, 1, 1, 2))
            self.conv = QuantConv2d(8, 8, 3, stride=2, **few)
            self.same, self.last = (QuantConv2d(8, 8, 3, padding=1, **few) for _ in range(2))

        def forward(self, x):
            y = self.conv(self.pad(torch.relu(self.stem(self.pad(x)))))
            z = y + self.same(y)
            return z + self.last(self.norm(z))

    torch.manual_seed(3)
    x = torch.randn(6, 3, 13, 12)
    packed = converted(Block(), x)
    assert any(len(step.attrs["padding"]) == 4 for step in packed.steps if step.op == "float_conv")
    assert any(len(step.attrs["padding"]) == 4 for step in packed.steps if step.op == "binary_conv")
    assert any("level_scale" in step.tensors for step in packed.steps)
    np.testing.assert_array_equal(answers(packed, x.numpy(), tmp_path), packed(x.numpy()))


def small():
    torch.manual_seed(0)
    return nn.Sequential(QuantLinear(40, 6, weight_quantizer=q.XnorWeight, input_quantizer=q.SteSign), nn.Tanh())


def test_a_step_that_cannot_be_written_is_named():
    x = torch.randn(4, 40)
    with pytest.raises(ValueError, match=r"^activation 1 cannot be written in C: there are .*binary_conv"):
        c_header(bnn.convert(small().eval(), x))
    floats = bnn.convert(nn.Sequential(QuantLinear(40, 6, weight_quantizer=q.XnorWeight)).eval(), x)
    with pytest.raises(ValueError, match=r"0 cannot be written in C: its weights are bits and its inputs floats"):
        c_header(floats)


@pytest.mark.parametrize("name", ["", "1net", "a-b", "net; int x"])
def test_a_name_that_c_does_not_take_is_refused(name):
    packed = bnn.convert(small()[:1].eval(), torch.randn(4, 40))
    with pytest.raises(ValueError, match="a model's name in C"):
        c_header(packed, name)


def test_the_command_writes_the_header(tmp_path):
    packed = bnn.convert(small()[:1].eval(), torch.randn(4, 40))
    packed.save(tmp_path / "packed.safetensors")
    command = [sys.executable, "-m", "bnn_kernels", "c-header", "packed.safetensors", "net.h", "--name", "net"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "net.h").read_text()
    assert text == c_header(bk.load(tmp_path / "packed.safetensors"), "net")
    assert re.search(r"net_predict takes 40 floats and writes 6", text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.h", "packed.safetensors"]


def test_numbers_lose_nothing():
    for value in np.array([0.1, -3.4e38, 1e-45, np.inf, -0.0], np.float32):
        text = number(value, "float32")
        back = {"INFINITY": np.inf}.get(text) or float.fromhex(text.removesuffix("f"))
        assert np.float32(back).tobytes() == value.tobytes()
    assert number(np.iinfo(np.int32).min, "int32") == "INT32_MIN"
    with pytest.raises(ValueError, match="NaN"):
        number(np.float32("nan"), "float32")
    assert array("a", np.array([[1, 2], [3, 4]], np.int32)).startswith("static const int32_t a[4] = {")


def test_buffers_are_shared_when_free():
    memory = Memory()
    first = memory.take("float", 10)
    assert memory.take("uint32_t", 3) != first
    memory.give_back(first)
    assert memory.take("float", 12) == first
    assert memory.nbytes == 4 * 15
