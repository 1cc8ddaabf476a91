"""The table "to add something" from outside: one of each in a package that is not ours, used as users would.

The package `addition` has a quantizer, a layer, a step with its conversion rule, a model, a data set and a figure; its
configs lie in a folder beside it. Nothing of the project is edited.
"""

import importlib
import json
import sys
from types import SimpleNamespace

import bnn_kernels as bk
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from bnn_kernels.steps.base import STEPS
from torch import nn

import bnn
from bnn.layers import QuantConv2d
from bnn.quantizers.description import EXAMPLE_INPUTS, describe
from paper_figures import quantizer_gallery

FILES = {
    "addition/__init__.py": "",
    "addition/quantizer.py": '''
import torch

from bnn.planes import Planes, Term
from bnn.quantizers import Quantizer
from bnn.quantizers.description import FEW_BITS, Description, Example, Panel


class CoarseWeight(Quantizer):
    """Forward: q(W) = s * level, level in {-2, -1, +1, +2}, s = mean|W| / 1.5. Gradient: 1."""

    description = Description(
        group=FEW_BITS, method="coarse", year=None, forward="s {-2, -1, 1, 2}", gradient="1", storage="two planes",
        examples=(Example((-7 / 6, -7 / 6, -7 / 12, 7 / 12, 7 / 12, 7 / 12, 7 / 6, 7 / 6), None),),
        panel=Panel(note="of a user"),
    )

    def planes(self, w):
        scale = w.detach().abs().mean() / 1.5
        negative, small = w.detach() < 0, w.detach().abs() < 1.5 * scale
        return Planes((Term(torch.stack([negative, negative ^ small]), True, (3, 1), scale / 2),))

    def forward(self, w):
        return w + (self.planes(w).value().to(w.dtype) - w).detach() if self.training else self.planes(w).value()
''',
    "addition/step.py": '''
import numpy as np
from bnn_kernels.runtime.recording import do
from bnn_kernels.runtime.workspace import empty
from bnn_kernels.steps.base import Step, need, step
from bnn_kernels.steps.fields import StepFields


def cube(x, y):
    np.multiply(x * x, x, out=y)


@step
class Cube(Step):
    """The third power."""

    class Fields(StepFields):
        op = "cube"

    def infer(self, inputs):
        need(inputs[0].kind == "float", f"takes floats, got {inputs[0]}")
        return inputs[0]

    def run(self, x):
        y = empty(x.shape, np.float32)
        do(cube, x, y)
        return y
''',
    "addition/layer.py": '''
import torch
from torch import nn

from addition import step
from bnn.converter import register_rule
from bnn.layers import QuantConv2d


class Cube(nn.Module):
    """The third power, by code that cannot be traced."""

    def forward(self, x):
        return torch.stack([one**3 for one in x])


@register_rule(Cube)
def cube(build, module, x):
    return build.step(x, x.shape, step.Cube.Fields())


class TwinConv(nn.Module):
    """Two quantized convolutions of the same input, one after the other's channels."""

    def __init__(self, channels, **quantizers):
        super().__init__()
        self.first = QuantConv2d(channels, channels, 3, padding=1, **quantizers)
        self.second = QuantConv2d(channels, channels, 1, **quantizers)

    def forward(self, x):
        return torch.cat([self.first(x), self.second(x)], 1)
''',
    "addition/model.py": '''
from torch import nn

from addition.layer import Cube, TwinConv


class Net(nn.Sequential):
    """A float convolution, twins, a cube, a linear layer."""

    def __init__(self, width, weight_quantizer, input_quantizer):
        super().__init__(
            nn.Conv2d(1, width, 3), nn.BatchNorm2d(width),
            TwinConv(width, weight_quantizer=weight_quantizer, input_quantizer=input_quantizer),
            nn.BatchNorm2d(2 * width), Cube(), nn.Flatten(), nn.Linear(72 * width, 2),
        )
        self.input_shape = (1, 8, 8)
''',
    "addition/data.py": '''
import torch

from bnn.data import ImageData, Split


def stripes(count: int = 128) -> ImageData:
    """Return stripes that lie or stand."""
    def split(seed):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 90, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
        labels = torch.arange(count) % 2
        images[labels == 0, :, ::2] += 120
        images[labels == 1, :, :, ::2] += 120
        return Split(images, labels)

    return ImageData("stripes", split(0), split(1), split(2), num_classes=2)
''',
    "addition/figure.py": '''
"""Loss over epochs, from the metrics of a run."""
import csv
import sys
from pathlib import Path

from paper_figures import style
from paper_figures.from_file import draw_from_file
from paper_figures.save import save


def draw(results, output):
    rows = list(csv.DictReader(results.read_text().splitlines()))
    figure, axes = style.panels(1, 1, 2.0, squeeze=False)
    axes.flat[0].plot([float(row["train_loss"]) for row in rows if row["train_loss"]], marker="o")
    save(figure, output)


def main(arguments=None):
    draw_from_file(__doc__, Path("metrics.csv"), Path("loss.png"), "metrics.csv of a run", draw, arguments)
''',
    "conf/quantizer/coarse.yaml": """
# 2/1: coarse weights after signs
defaults: [fp32]
name: coarse
label: 2/1 coarse
weight: {_target_: addition.quantizer.CoarseWeight, _partial_: true}
input: {_target_: bnn.quantizers.SteSign, _partial_: true, clip: 1.0}
""",
    "conf/model/twins.yaml": """
_target_: addition.model.Net
width: 8
weight_quantizer: ${quantizer.weight}
input_quantizer: ${quantizer.input}
""",
    "conf/data/stripes.yaml": "_target_: addition.data.stripes\n",
}


@pytest.fixture
def addition(tmp_path, monkeypatch):
    """The package, importable, in the current folder; what it registered is forgotten afterwards."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.lstrip())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(STEPS)
    names = ("quantizer", "layer", "step", "model", "data", "figure")
    yield SimpleNamespace(**{name: importlib.import_module(f"addition.{name}") for name in names}, folder=tmp_path)
    STEPS.clear()
    STEPS.update(before)
    for name in [name for name in sys.modules if name.partition(".")[0] == "addition"]:
        del sys.modules[name]


def test_one_of_each_trains_converts_and_is_drawn_by_the_commands(addition, command):
    chosen = ("--config-dir", "conf", "quantizer=coarse", "model=twins", "data=stripes")
    small = ("epochs=1", "batch_size=64", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu")
    done = command("experiments.train", *chosen, *small)
    assert done.status == 0, done.err
    (result,) = addition.folder.glob("runs/default/coarse/*/seed0/result.json")
    assert json.loads(result.read_text())["steps"] == 2
    done = command("experiments.convert", f"run={result.parent}", "parity=64")
    assert done.status == 0, done.err
    loaded = bk.load(result.parent / "packed.safetensors")
    assert "cube" in {step.op for step in loaded.steps}
    addition.figure.main(["--results", str(result.parent / "metrics.csv"), "--output", "loss.png"])
    quantizer_gallery.main(["--classes", "addition.quantizer.CoarseWeight", "--output", "gallery.png"])
    for picture in ("loss.png", "gallery.png"):
        assert plt.imread(picture).std() > 0


def test_one_of_each_in_python(addition):
    """bnn.quantize, conversion, parity, a file and back; the step and the layer do what they say."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), addition.layer.Cube(),
        nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip
    images = torch.randn(16, 1, 8, 8)
    chosen = {"weight_quantizer": addition.quantizer.CoarseWeight, "input_quantizer": bnn.quantizers.SteSign}
    quantized = bnn.quantize(model, **chosen, example_input=images).eval()
    assert isinstance(quantized[2], QuantConv2d)
    quantizer = addition.quantizer.CoarseWeight().eval()
    for example in describe(type(quantizer)).examples:
        torch.testing.assert_close(quantizer(torch.tensor([EXAMPLE_INPUTS]))[0], torch.tensor(example.values))
    packed = bnn.convert(quantized, images)
    report = bnn.check_parity(quantized, packed, images)
    assert report.ok, str(report)
    path = addition.folder / "packed.safetensors"
    packed.save(path)
    loaded = bk.load(path)
    for _ in range(3):  # the first call, the one that is recorded, and its replay
        np.testing.assert_array_equal(loaded(images.numpy()), packed(images.numpy()))
    x = np.float32([[-2, 0.5, 3]])
    alone = bk.PackedModel((3,), [bk.StepSpec("cube", ["x"], ["y"])])
    np.testing.assert_array_equal(alone(x), x**3)


def test_a_file_with_a_step_that_nobody_imported_is_refused_by_name(addition):
    path = addition.folder / "cube.safetensors"
    bk.PackedModel((3,), [bk.StepSpec("cube", ["x"], ["y"])]).save(path)
    STEPS.pop("cube")
    with pytest.raises(bk.PlanError, match="cube"):
        bk.load(path)
