"""Three pictures of the ideas: bit planes, latent weights, thresholds, computed by the code that they explain.

bitplanes figures concepts [--output FOLDER]

Bit planes: a filter quantized three ways, and the planes that its values are a sum of. Latent weights: Adam on a small
regression with binary weights. Thresholds: a batch norm after a binary layer, over every sum that 24 inputs can give.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from torch import nn

from bnn import quantizers as q
from paper_figures.save import save
from paper_figures.style import BLUE, DARK, ORANGE, panels

DEFAULT_OUTPUT = Path("results") / "figures"
SIGNED = LinearSegmentedColormap.from_list("signed", [ORANGE, "white", BLUE])
SIDE = 6  # of the filter that is drawn


def _cells(axis: Axes, values: np.ndarray, title: str, bits: bool) -> None:
    """Draw a filter: bits as black and white, numbers in blue and orange by sign."""
    if bits:
        axis.imshow(values, cmap="Greys", vmin=0, vmax=1)
    else:
        size = np.abs(values).max()
        axis.imshow(values, cmap=SIGNED, vmin=-size, vmax=size)
    axis.set_xticks(np.arange(-0.5, SIDE), [])
    axis.set_yticks(np.arange(-0.5, SIDE), [])
    axis.spines[["top", "right"]].set_visible(True)
    axis.tick_params(length=0)
    axis.grid(color="#999999", linewidth=0.5)
    axis.set_title(title)


def draw_bit_planes(output: Path) -> None:
    """Draw a filter, its quantized values and their planes, for three quantizers."""
    weight = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    lsq = q.LsqWeight(3)
    lsq(weight)  # takes its first step size from the weights
    rows = (("XNOR-Net, 1 bit", q.XnorWeight()), ("TWN, ternary", q.TernaryWeight()), ("LSQ, 3 bits", lsq.eval()))
    figure, axes = panels(len(rows), 5, 6.0)
    for line, (name, quantizer) in zip(axes, rows, strict=True):
        with torch.no_grad():
            planes = quantizer.planes(weight)
        (term,) = planes.terms
        _cells(line[0], weight[0, 0].numpy(), "latent weights", False)
        line[0].set_ylabel(name)
        scale = float(term.scale.detach().flatten()[0])
        _cells(line[1], planes.value()[0, 0].detach().numpy(), f"quantized = {scale:.2f} times", False)
        for axis, bit, multiplier in zip(line[2:], term.bits, term.multipliers, strict=False):
            stored = "bit 1 is -1" if term.signed else "bit 1 is 1"
            _cells(axis, bit[0, 0].numpy(), f"{multiplier:+d} times ({stored})", True)
        for axis in line[2 + len(term.multipliers) :]:
            axis.set_visible(False)
    save(figure, output)


def draw_latent_weights(output: Path) -> None:
    """Draw latent weights over training steps, and the signs that the network computes with."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(256, 8, generator=generator)
    wanted = inputs @ torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1])
    latent = (0.3 * torch.randn(8, generator=generator)).requires_grad_()
    sign, optimizer, trail = q.SteSign(clip=None), torch.optim.Adam([latent], lr=0.03), []
    for _ in range(60):
        trail.append(latent.detach().clone())
        loss = (inputs @ sign(latent) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            latent.clamp_(-1, 1)
    path = torch.stack(trail).numpy()
    figure, (top, below) = panels(2, 1, 5.0, sharex=True, height_ratios=(2, 1))
    for weight in range(path.shape[1]):
        top.plot(path[:, weight], color=BLUE if path[-1, weight] >= 0 else ORANGE, linewidth=1.3)
    top.axhline(0, color=DARK, linewidth=0.8)
    top.set_ylabel("latent weight (float)")
    top.set_ylim(-1.1, 1.1)
    below.imshow(path.T < 0, cmap="Greys", aspect="auto", vmin=0, vmax=1, interpolation="nearest")
    below.set_ylabel("stored bits")
    below.grid(False)
    below.set_yticks([])
    below.set_xlabel("training step")
    save(figure, output)


def draw_thresholds(output: Path) -> None:
    """Draw batch norm after a binary layer of 24 inputs, and the integer at which its sign changes."""
    sums = torch.arange(-24, 25, 2)  # what 24 products of signs can add up to
    norm = nn.BatchNorm1d(2).eval()
    norm.weight.data = torch.tensor([1.0, -0.7])
    norm.bias.data = torch.tensor([-0.6, 0.5])
    norm.running_mean = torch.tensor([2.0, -3.0])
    norm.running_var = torch.tensor([30.0, 20.0])
    with torch.no_grad():
        outputs = norm(sums[:, None].float().expand(-1, 2)).numpy()
    figure, axes = panels(1, 2, 3.8, sharey=True)
    for axis, values, gamma in zip(axes, outputs.T, norm.weight.tolist(), strict=True):
        negative = values < 0
        threshold = sums.numpy()[np.flatnonzero(np.diff(negative.astype(int)))[0] + 1]
        rises = gamma > 0
        rule = f"bit = sum < {threshold}" if rises else f"bit = sum >= {threshold}"
        axis.axhline(0, color=DARK, linewidth=0.8)
        axis.axvline(threshold - 1, color=DARK, linewidth=0.8, linestyle="--")
        for part, color, label in ((~negative, BLUE, "+1, bit 0"), (negative, ORANGE, "-1, bit 1")):
            axis.plot(sums[part], values[part], "o", color=color, markersize=4, label=label)
        axis.set_title(f"gamma {'> 0' if rises else '< 0'}:  {rule}")
        axis.set_xlabel("integer sum of the binary layer")
        axis.legend(loc="upper left" if rises else "upper right")
    axes[0].set_ylabel("after batch norm")
    save(figure, output)


DRAWINGS = {"bit_planes": draw_bit_planes, "latent_weights": draw_latent_weights, "thresholds": draw_thresholds}


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder for the three pictures")
    options = parser.parse_args(arguments)
    for name, draw in DRAWINGS.items():
        file = options.output / f"concept_{name}.png"
        draw(file)
        print(f"written: {file}")


if __name__ == "__main__":
    sys.exit(main())
