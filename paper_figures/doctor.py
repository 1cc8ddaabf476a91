"""What the doctor saw while a network trained: bitplanes figures doctor [--results FILE] [--output FILE].

One panel for each metric, one line for each layer, over the training steps; dashed where a finding begins. The findings
stand below. FILE is the doctor.json of a run.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures import style
from paper_figures.from_file import draw_from_file
from paper_figures.save import save

DEFAULT_RESULTS = Path("results") / "doctor_dorefa2_mnist.json"
DEFAULT_OUTPUT = Path("results") / "figures" / "doctor.png"
COLUMNS, SHOWN_FINDINGS, SHOWN_LAYERS = 3, 8, 8


def read(path: Path) -> dict[str, Any]:
    """Return the doctor's report; SystemExit with a message if it is missing or none."""
    try:
        content = json.loads(path.read_text())
        missing = {"metrics", "bounds", "steps", "loss", "layers", "findings"} - set(content)
    except FileNotFoundError:
        raise SystemExit(f"error: {path} is missing; give --results the doctor.json of a run") from None
    except (ValueError, TypeError) as error:
        raise SystemExit(f"error: {path} is no report of the doctor: {error}") from None
    if missing or not content["steps"]:
        raise SystemExit(f"error: {path} is no report of the doctor: {', '.join(sorted(missing)) or 'steps'} missing")
    return content


def _numbers(values: list[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else float(value) for value in values])


def _title(content: dict[str, Any]) -> str:
    parts = [str(content[key]) for key in ("model", "data", "label") if key in content]
    if "seed" in content:
        parts.append(f"seed {content['seed']}")
    if "accuracy" in content:
        parts.append(f"test accuracy {100 * content['accuracy']['test']:.2f} %")
    return ", ".join(parts) or "what the doctor saw"


def _shown(names: list[str]) -> list[str]:
    """Return the layers that the legend names: all, or the first, the last and some between."""
    chosen = np.unique(np.linspace(0, len(names) - 1, min(len(names), SHOWN_LAYERS)).astype(int))
    return [names[i] for i in chosen]


def plot(content: dict[str, Any]) -> Figure:
    """Return the figure of a report."""
    steps, layers = content["steps"], content["layers"]
    metrics = [name for name in content["metrics"] if any(name in series for series in layers.values())]
    used = 1 + len(metrics)
    rows = -(-used // COLUMNS)
    found = findings_text(content["findings"])
    height = 1.75 * rows + 1.2 + 0.16 * found.count("\n")
    figure, axes = style.panels(rows, COLUMNS, height, sharex=True, squeeze=False)
    colours = dict(zip(layers, matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(layers))), strict=True))
    marker = "o" if len(steps) == 1 else None  # one point makes no line
    panels = iter(axes.flat)
    loss = next(panels)
    loss.plot(steps, _numbers(content["loss"]), color=style.GREY, marker=marker)
    loss.set_title("loss")
    for name, axis in zip(metrics, panels, strict=False):
        for layer, series in layers.items():
            if name in series:
                axis.plot(steps, _numbers(series[name]), color=colours[layer], linewidth=1.3, marker=marker)
        low, high = axis.get_ylim()
        bound = content["bounds"].get(name)
        # Only where it is near what was measured.
        if bound is not None and low - 2 * (high - low) <= bound["value"] <= high + 2 * (high - low):
            axis.axhline(bound["value"], color=style.ORANGE, linestyle="--", linewidth=1.2)
            low, high = min(low, bound["value"]), max(high, bound["value"])
        margin = 0.04 * (high - low)
        axis.set_ylim(max(low - margin, -margin), high + margin)  # no metric is negative
        axis.set_title(name.replace("_", " "))
    for index, axis in enumerate(axes.flat):
        if index >= used:
            axis.set_axis_off()
        elif index >= used - COLUMNS:
            axis.set_xlabel("training step")
            axis.tick_params(labelbottom=True)
    handles = [Line2D([], [], color=colours[layer], label=layer) for layer in _shown(list(layers))]
    handles.append(Line2D([], [], color=style.ORANGE, linestyle="--", label="a finding begins"))
    style.legend_with_title(figure, _title(content), handles)
    # A label below all panels: it makes room for its lines.
    figure.supxlabel(found, x=0.01, ha="left", fontsize=style.NORMAL, color=style.DARK)
    return figure


def draw(content: dict[str, Any], output: Path) -> None:
    """Draw the figure and write it."""
    save(plot(content), output)


def findings_text(found: list[dict[str, Any]]) -> str:
    """Return the findings in words, the first of them if there are many, in lines that fit the figure."""
    lines = [": ".join(filter(None, (finding["layer"], finding["text"]))) for finding in found[:SHOWN_FINDINGS]]
    if len(found) > SHOWN_FINDINGS:
        lines.append(f"and {len(found) - SHOWN_FINDINGS} more")
    return style.wrapped("Findings: " + ("; ".join(lines) or "none"))


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    draw_from_file(
        __doc__,
        DEFAULT_RESULTS,
        DEFAULT_OUTPUT,
        "doctor.json of a run",
        lambda results, output: draw(read(results), output),
        arguments,
    )


if __name__ == "__main__":
    sys.exit(main())
