"""XNOR-Net's figure 4a: memory of weights, binary beside double precision as the paper draws it, and single precision.

bitplanes figures xnor_net_memory [--output FILE]

Computed from the numbers of parameters alone: 8 bytes a weight in double precision, 4 in single, 1 bit in binary. The
paper's factor of 64 is against double precision; against what networks are stored in, single precision, it is 32. The
bits of a packed file and what stays FP32 in it: `bitplanes summary` of a file, and results/networks.json.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.save import save

DEFAULT_OUTPUT = Path("results") / "figures" / "xnor_net_memory.png"
MIB = 2**20
BYTES = {"double precision": 8.0, "single precision": 4.0, "binary": 1 / 8}


@dataclass(frozen=True)
class Network:
    """name. parameters: weights and biases. paper: (double, binary) in MB as figure 4a prints them."""

    name: str
    parameters: int
    paper: tuple[float, float]

    def mebibytes(self, precision: str) -> float:
        """Return the memory of all parameters in a precision of BYTES, in MiB."""
        return self.parameters * BYTES[precision] / MIB


def vgg19_parameters() -> int:
    """Return the parameters of VGG-19 (Simonyan and Zisserman 2014, configuration E): 16 convolutions and 3 layers."""
    stages = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
    total, before = 0, 3
    for channels, count in stages:
        for _ in range(count):
            total += channels * (before * 9 + 1)
            before = channels
    for inputs, outputs in ((512 * 7 * 7, 4096), (4096, 4096), (4096, 1000)):
        total += outputs * (inputs + 1)
    return total


# AlexNet in one tower, whose linear layers are those of 224x224 images; ResNet-18 with its batch norms.
NETWORKS = (
    Network("VGG-19", vgg19_parameters(), (1000, 16)),
    Network("ResNet-18", 11_689_512, (100, 1.5)),
    Network("AlexNet", 62_378_344, (475, 7.4)),
)


def plot() -> Figure:
    """Return the figure: a group of bars for each network, the paper's numbers as dots."""
    figure, axis = style.panels(1, 1, 4.2)
    colours = {"double precision": style.GREY, "single precision": style.ORANGE, "binary": style.BLUE}
    places = np.arange(len(NETWORKS))
    for at, (precision, colour) in enumerate(colours.items()):
        sizes = [network.mebibytes(precision) for network in NETWORKS]
        axis.bar(places + 0.27 * (at - 1), sizes, 0.25, color=colour, label=precision)
        for place, size in zip(places, sizes, strict=True):  # at its foot: above it is the paper's dot
            words = f"{size:,.1f}" if size < 100 else f"{size:,.0f}"
            axis.text(place + 0.27 * (at - 1), 0.53, words, color="white", ha="center", va="bottom")
    for side, shift in ((0, -0.27), (1, 0.27)):
        paper = [network.paper[side] for network in NETWORKS]
        label = "as the paper prints it" if side == 0 else None
        axis.plot(places + shift, paper, "D", color=style.DARK, markersize=5, label=label, zorder=3)
    axis.set_yscale("log")
    axis.set_ylim(0.5, 4000)
    axis.set_ylabel("MiB of parameters")
    axis.set_xticks(places, [f"{network.name}\n{network.parameters / 1e6:.1f} M parameters" for network in NETWORKS])
    axis.grid(visible=False, axis="x")
    figure.legend(loc="outside lower center", ncols=4)
    style.title(figure, "Memory of the parameters: binary is 64 times smaller than double precision, 32 than single")
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="picture to write (.png, .pdf, .svg)")
    options = parser.parse_args(arguments)
    save(plot(), options.output)
    print(f"written: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
