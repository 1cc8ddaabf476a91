"""What the doctor saw while a network trained: python -m paper_figures.doctor [--results FILE] [--output FILE].

One panel for each metric, one line for each layer, over the training steps; dashed where a finding begins. The findings
stand below. FILE is the doctor.json of a run.
"""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from paper_figures.from_file import draw_from_file
from paper_figures.save import save

DEFAULT_RESULTS = Path("results") / "doctor_dorefa2_mnist.json"
DEFAULT_OUTPUT = Path("results") / "figures" / "doctor.png"
COLUMNS, SHOWN_FINDINGS, SHOWN_LAYERS = 4, 8, 8
GREY, ORANGE = "#777777", "#d9662b"


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


def draw(content: dict[str, Any], output: Path) -> None:
    """Draw the figure and write it."""
    steps, layers = content["steps"], content["layers"]
    metrics = [name for name in content["metrics"] if any(name in series for series in layers.values())]
    rows = -(-(len(metrics) + 1) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(3.1 * COLUMNS, 2.3 * rows + 0.8), sharex=True, squeeze=False)
    colours = dict(zip(layers, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(layers))), strict=True))
    panels = iter(axes.flat)
    loss = next(panels)
    loss.plot(steps, _numbers(content["loss"]), color=GREY)
    loss.set_title("loss", fontsize=9)
    for name, axis in zip(metrics, panels, strict=False):
        for layer, series in layers.items():
            if name in series:
                axis.plot(steps, _numbers(series[name]), color=colours[layer], linewidth=1.3, label=layer)
        low, high = axis.get_ylim()
        bound = content["bounds"].get(name)
        if bound is not None:
            axis.axhline(bound["value"], color=ORANGE, linestyle="--", linewidth=1)
            # Only where it is near what was measured.
            near = low - 2 * (high - low) <= bound["value"] <= high + 2 * (high - low)
            axis.set_ylim(*((min(low, bound["value"]), max(high, bound["value"])) if near else (low, high)))
        axis.set_title(name.replace("_", " "), fontsize=9)
    used = 1 + len(metrics)
    for index, axis in enumerate(axes.flat):
        if index >= used:
            axis.set_axis_off()
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
        if index >= used - COLUMNS:
            axis.set_xlabel("training step", fontsize=8)
            axis.tick_params(labelbottom=True)
    handles, names = axes.flat[1].get_legend_handles_labels() if metrics else ([], [])
    if len(names) > SHOWN_LAYERS:  # first, last and some between
        chosen = np.unique(np.linspace(0, len(names) - 1, SHOWN_LAYERS).astype(int))
        handles, names = [handles[i] for i in chosen], [names[i] for i in chosen]
    figure.suptitle(_title(content), fontsize=11)
    figure.legend(handles, names, loc="lower right", fontsize=8, frameon=False, ncols=2)
    figure.text(0.01, 0.01, _findings(content["findings"]), fontsize=8, va="bottom", color=ORANGE)
    figure.tight_layout(rect=(0, 0.4 / (2.3 * rows + 0.8), 1, 1))
    save(figure, output)


def _findings(found: list[dict[str, Any]]) -> str:
    lines = [": ".join(filter(None, (finding["layer"], finding["text"]))) for finding in found[:SHOWN_FINDINGS]]
    if len(found) > SHOWN_FINDINGS:
        lines.append(f"and {len(found) - SHOWN_FINDINGS} more")
    return textwrap.fill("Findings: " + ("; ".join(lines) or "none"), 130)


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
