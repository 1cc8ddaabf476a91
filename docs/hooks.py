"""What mkdocs adds to the pages of this folder: the reference and tables of quantizers and recipes, made from the code.

`mkdocs.yml` names this file as a hook and `DocstringsAsMarkdown` as an extension of mkdocstrings' parser. Files that
lie elsewhere (figures of `results/`, the README of the kernels, CHANGELOG, CONTRIBUTING) become part of the site here.
"""

import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean, median, stdev
from types import ModuleType
from typing import Any

import yaml

from experiments import published, timm
from paper_figures import ledger_file

ROOT = Path(__file__).resolve().parent.parent

# Public modules, each a page of the reference: file, title, module.
REFERENCE = {
    "bnn": "bnn",
    "layers": "bnn.layers",
    "quantizers": "bnn.quantizers",
    "planes": "bnn.planes",
    "models": "bnn.models",
    "calibration": "bnn.calibration",
    "pruning": "bnn.pruning",
    "converter": "bnn.converter",
    "onnx_file": "bnn.onnx_file",
    "training": "bnn.training",
    "optimizers": "bnn.optimizers",
    "data": "bnn.data",
    "doctor": "bnn.doctor",
    "memory": "bnn.memory",
    "bnn_kernels": "bnn_kernels",
    "kernels_reference": "bnn_kernels.reference",
}
# Pages whose text lies elsewhere.
ELSEWHERE = {"kernels.md": "kernels/README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
FIGURES = "results/figures"


def public_names(module: ModuleType) -> list[str]:
    """Return the names that a module offers, in its own order: not those with _, modules, or what others define."""
    names = []
    for name, value in vars(module).items():
        home = getattr(value, "__module__", None)
        if name.startswith("_") or inspect.ismodule(value):
            continue
        if isinstance(home, str):
            if home.partition(".")[0] in ("bnn", "bnn_kernels"):
                names.append(name)
        elif name.isupper():  # constants
            names.append(name)
    return names


def reference_page(module_name: str) -> str:
    """Return the Markdown of a module's page: its docstring, then every public name for mkdocstrings."""
    module = importlib.import_module(module_name)
    names = public_names(module)
    own = sys.modules[module_name].__doc__ or ""
    lines = [f"# {module_name}", "", as_markdown(inspect.cleandoc(own), ()), ""]
    # Names that are loaded when they are first used, so that `import bnn` stays quick.
    for name in sorted(set(getattr(module, "__all__", ())) - {*vars(module), *(page.name for page in _subpackages())}):
        home = ".".join(getattr(module, name).__module__.split(".")[:2])
        lines += [f"- `{module_name}.{name}` is [`{name}`][{home}.{name}] of `{home}`."]
    lines.append("")
    for name in names:
        lines += [f"::: {module_name}.{name}", ""]
    return "\n".join(lines)


def _subpackages() -> list[Path]:
    return [init.parent for init in (ROOT / "bnn").glob("*/__init__.py")]


def _config(file: Path) -> dict[str, Any]:
    """Return a YAML of configs/quantizer with what it takes from others."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    whole: dict[str, Any] = {}
    for name in content.pop("defaults", []):
        if isinstance(name, str) and name != "_self_":
            whole |= _config(file.with_name(f"{name}.yaml"))
    return whole | content


def _class(node: dict[str, Any]) -> str:
    """Return a quantizer's class and arguments as a cell with a link."""
    name = node["_target_"].rpartition(".")[2]
    arguments = ", ".join(f"{key}={value}" for key, value in node.items() if not key.startswith("_"))
    # A class that needs no entry in the reference would break the link, so the link is to the class's page.
    return f"[`{name}`][bnn.quantizers.{name}]" + (f" {arguments}" if arguments else "")


def quantizer_table() -> str:
    """Return the Markdown of the page of quantizers: every config, then every class with its forward and gradient."""
    quantizers = importlib.import_module("bnn.quantizers")
    lines = [
        "# Quantizers, from the code",
        "",
        "Made from `configs/quantizer/` and the classes' docstrings. [The quantizers, compared](../quantizers.md) says",
        "what they cost at inference and what was published with them.",
        "",
        f"![Forward and gradient of every quantizer](../../{FIGURES}/quantizer_gallery.png)",
        "",
        "## Configs",
        "",
        "`bitplanes train quantizer=NAME` takes each of them.",
        "",
        "| name | W/A | weights | inputs |",
        "|---|---|---|---|",
    ]
    for file in sorted((ROOT / "configs" / "quantizer").glob("*.yaml")):
        config = _config(file)
        label = str(config["label"]).replace("|", "\\|")
        lines.append(f"| `{config['name']}` | {label} | {_class(config['weight'])} | {_class(config['input'])} |")
    lines += ["", "## Classes", "", "| class | what it computes |", "|---|---|"]
    for name in public_names(quantizers):
        value = getattr(quantizers, name)
        if inspect.isclass(value) and issubclass(value, quantizers.Quantizer) and value.__name__ == name:
            first = inspect.cleandoc(value.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
            cell = _escaped(first).replace("|", "&#124;")
            lines.append(f"| [`{name}`][bnn.quantizers.{name}] | {cell} |")
    return "\n".join(lines)


def published_table() -> str:
    """Return the table of results/published_networks.json: what each definition becomes, under its repository."""
    rows = json.loads((ROOT / "results" / "published_networks.json").read_text(encoding="utf-8"))["rows"]
    lines = ["| network | W/A | layers on bits | same predictions | packed / FP32 | |", "|---|---|---|---|---|---|"]
    for row in rows:
        place = f"https://github.com/{row['repository']}/tree/{row['commit']}"
        given = [f"{name}={value}" for name, value in row["arguments"].items() if not isinstance(value, dict)]
        name = f"[{row['repository']}]({place}) `{' '.join([row['class'], *given, *row['argv']])}`"
        found = "layers" in row
        cells = [
            name,
            row["label"],
            f"{row['on_bits']} of {row['layers']}" if found else "",
            f"{row['agreement']:.1%}" if found else "",
            f"{row['packed_bytes'] / 1000:,.0f} / {row['fp32_bytes'] / 1000:,.0f} kB" if found else "",
            published.outcome(row).partition(". ")[0].replace("|", "/"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([published.summary(rows), "", *lines])


def timm_table() -> str:
    """Return the table of results/timm.json: what each architecture becomes with each policy of bits."""
    rows = json.loads((ROOT / "results" / "timm.json").read_text(encoding="utf-8"))["rows"]
    # What a network with quantizers takes in PyTorch, which simulates them, is no time to compare with.
    floats = {row["name"]: row["torch_ms"] for row in rows if row["policy"] == "FP32" and "torch_ms" in row}
    lines = [
        "| architecture | images | W/A | layers on bits | same predictions | packed / FP32 | packed / PyTorch FP32 | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = "layers" in row
        cells = [
            f"`{row['name']}`",
            f"{row['size']} x {row['size']}",
            row["policy"],
            f"{row['on_bits']} of {row['layers']}" if found else "",
            f"{row['agreement']:.0%} of {row['inputs']}" if found else "",
            f"{row['packed_bytes'] / 1000:,.0f} / {4 * row['parameters'] / 1000:,.0f} kB" if found else "",
            f"{row['packed_ms']:.3g} / {floats[row['name']]:.3g} ms" if "packed_ms" in row else "",
            timm.outcome(row).partition(". ")[0].replace("|", "/"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ledger_table() -> str:
    """Return the Markdown tables of the fields of a ledger's entries, runs and packed runs."""
    lines = []
    titles = {
        "An entry": "ENTRY_FIELDS",
        "A run": "RUN_FIELDS",
        "A run whose network was packed or timed": "PACKED_FIELDS",
        "A run of `compare-methods`": "JUDGED_FIELDS",
    }
    for title, name in titles.items():
        lines += [f"**{title}**", "", "| field | what it says |", "|---|---|"]
        for field, (types, meaning) in getattr(ledger_file, name).items():
            lines.append(f"| `{field}` | {meaning}{' (or null)' if type(None) in types else ''} |")
        lines.append("")
    return "\n".join(lines)


def bits_by_layer_table() -> str:
    """Return the table of results/bits_by_layer_mnist_layers.json and its ledger: what each assignment of bits cost."""
    file = ROOT / "results" / "bits_by_layer_mnist_layers.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    ledger = json.loads(file.with_name(content["ledger"]).read_text(encoding="utf-8"))
    entries = {entry["method"]: entry for entry in ledger["entries"]}
    lines = [
        f"| bits of {', '.join(content['layers'])} | kB of weights | us, added up | us, measured | test accuracy, % |",
        "|---|---|---|---|---|",
    ]
    for one in content["assignments"]:
        entry = entries[one["cell"]]
        bits = ", ".join(map(str, one["widths"].values()))
        accuracy = f"{100 * entry['mean']:.2f} ± {100 * entry['std']:.2f}"
        times = f"{one['predicted_us']:.0f} | {one['measured_us']:.0f}"
        lines.append(f"| {bits} | {one['bytes'] / 1000:.0f} | {times} | {accuracy} |")
    base = entries["base"]
    lines.append(f"| FP32 | | | | {100 * base['mean']:.2f} ± {100 * base['std']:.2f} |")
    said = []
    for pair in content["comparisons"]:
        bits = [
            ", ".join(map(str, one["widths"].values()))
            for key in ("by_layer", "uniform")
            for one in content["assignments"]
            if one["cell"] == pair[key]
        ]
        p = "" if pair["p_holm"] is None else f", p = {pair['p_holm']:.2g}"
        said.append(
            f"{bits[0]} against {bits[1]} bits: {100 * pair['difference']:+.2f} points over {pair['seeds']} seeds{p}, "
            f"in {pair['latency_us'][0]:.0f} and {pair['latency_us'][1]:.0f} us"
        )
    return "\n".join([*lines, "", f"{'; '.join(said)} (paired t-tests, adjusted by Holm; trained networks)."])


def post_training_table() -> str:
    """Return the table of results/post_training_mnist.json: accuracy after quantization without training."""
    content = json.loads((ROOT / "results" / "post_training_mnist.json").read_text(encoding="utf-8"))
    exact = fmean(content["accuracy_fp32"])
    lines = [
        "| W/A | ranges of inputs | and | test accuracy, % | lost, points | predicts as FP32, % | kB |",
        "|---|---|---|---|---|---|---|",
        f"| FP32 | | | {_mean_and_deviation(content['accuracy_fp32'])} | | | |",
    ]
    for row in content["rows"]:
        lost = round(100 * (exact - fmean(row["accuracy"])), 2) + 0.0  # no -0.00
        ranges = "follow the input" if row["method"] == "dynamic" else f"`{row['observer']}`"
        method = POST_TRAINING_METHODS.get(row["method"], "")
        lines.append(
            f"| {row['bits']} | {ranges} | {method} | {_mean_and_deviation(row['accuracy'])} | {lost:.2f} | "
            f"{100 * fmean(row['agreement_with_fp32']):.2f} | {row['payload_bytes'] / 1000:.0f} |"
        )
    packed = [share for row in content["rows"] for share in row["agreement_of_packed"]]
    return "\n".join(
        [
            *lines,
            "",
            f"The packed network predicts what PyTorch predicts for {100 * min(packed):g} % of the "
            "images of every row.",
        ]
    )


def together_table() -> str:
    """Return the table of results/together_mnist.json: distillation, pruning and quantization, alone and together."""
    entries = ledger_file.read_ledger(ROOT / "results" / "together_mnist.json")
    base = next(entry for entry in entries if entry["method"] == "32/32/nothing")
    lines = [
        "| W/A | with | test accuracy, % | more than FP32 alone, points | kB | us |",
        "|---|---|---|---|---|---|",
    ]
    for entry in entries:
        *bits, added = entry["method"].split("/", 2)
        accuracy = _mean_and_deviation([run["value"] for run in entry["runs"]])
        more = 100 * (entry["mean"] - base["mean"])
        size = max(run["file_bytes"] for run in entry["runs"]) / 1000
        time = median(run["latency_us"]["median"] for run in entry["runs"])
        lines.append(f"| {'/'.join(bits)} | {added} | {accuracy} | {more:+.2f} | {size:,.1f} | {time:.0f} |")
    return "\n".join(lines)


# What a row of the table of post-training quantization has beside its observer.
POST_TRAINING_METHODS = {"equalize": "`equalize`", "bias": "`correct_bias`", "adaround": "`adaptive_rounding`"}


def _mean_and_deviation(shares: list[float]) -> str:
    """Return mean and standard deviation, in percent."""
    return f"{100 * fmean(shares):.2f} ± {100 * stdev(shares):.2f}"


# Tables that stand in a page where it has <!-- table: NAME -->.
TABLES = {
    "published": published_table,
    "timm": timm_table,
    "ledger": ledger_table,
    "bits_by_layer": bits_by_layer_table,
    "post_training": post_training_table,
    "together": together_table,
}


def recipe_table(data: str) -> str:
    """Return the Markdown table of the recipes in configs/experiment that publish a number on this data set."""
    rows = []
    for file in sorted((ROOT / "configs" / "experiment").glob("*.yaml")):
        published = yaml.safe_load(file.read_text(encoding="utf-8")).get("published") or {}
        if published.get("data") == data:
            value = f"{100 * published['value']:.2f} %"
            rows.append((published["model"], published["quantizer"], value, published["source"], file.stem))
    lines = ["| network | quantizer | published | source | `bitplanes train ...` |", "|---|---|---|---|---|"]
    for model, quantizer, value, source, name in sorted(rows):
        lines.append(f"| {model} | {quantizer} | {value} | {source} | `experiment={name}` |")
    return "\n".join(lines)


def generated_pages() -> dict[str, str]:
    """Return {path within the site's sources: Markdown} of every page that no file of this folder holds."""
    pages = {f"reference/{file}.md": reference_page(module) for file, module in REFERENCE.items()}
    pages["reference/quantizer_table.md"] = quantizer_table()
    pages |= {page: (ROOT / file).read_text(encoding="utf-8") for page, file in ELSEWHERE.items()}
    return pages


# -- docstrings -------------------------------------------------------------------------------------------------------

_ITEM = re.compile(r"(\w+(?:, \w+)*): (?=\S)")


def _escaped(line: str) -> str:
    """Return a line whose <, * and [ are text; what stands in backquotes stays."""
    parts = line.split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", r"\*").replace("[", r"\[") for part in parts[::2]]
    return "`".join(parts)


def as_markdown(text: str, names: Iterable[str]) -> str:
    """Return a docstring as Markdown: doctests become code, lines `name: ...` of these names become items of a list."""
    known = set(names)
    lines: list[str] = []
    doctest = item = False
    for line in text.splitlines():
        if line.startswith(">>>") and not doctest:
            lines += ["", "```pycon"]
            doctest, item = True, False
        elif doctest and not line.strip():
            lines.append("```")
            doctest = False
        if doctest:
            lines.append(line)
            continue
        match = _ITEM.match(line)
        if match and known.issuperset(match[1].split(", ")):
            lines += [] if item else [""]
            lines.append(f"- **{match[1]}**: {_escaped(line[match.end() :])}")
            item = True
        elif not item and (line.startswith("    ") or line.startswith("|")):
            lines.append(line)  # code, or a table
        else:
            item = item and bool(line.strip())
            lines.append(_escaped(line))
    return "\n".join([*lines, "```"] if doctest else lines)


try:
    import griffe
except ImportError:  # the tests of this file need no documentation tools
    pass
else:

    class DocstringsAsMarkdown(griffe.Extension):
        """Rewrites the docstrings of a package when mkdocstrings has parsed it."""

        def on_package(self, *, pkg: Any, **_: Any) -> None:
            for found in _objects(pkg):
                if found.docstring is not None:
                    names = {*found.members, *(p.name for p in getattr(found, "parameters", ()))}
                    if "__init__" in found.members and not found.members["__init__"].is_alias:
                        names |= {p.name for p in getattr(found.members["__init__"], "parameters", ())}
                    found.docstring.value = as_markdown(found.docstring.value, names)


def _objects(found: Any) -> Iterator[Any]:
    if not found.is_alias:
        yield found
        for member in list(found.members.values()):
            yield from _objects(member)


# -- hooks of mkdocs --------------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and the figures."""
    from mkdocs.structure.files import File

    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text))
    for figure in sorted((ROOT / FIGURES).glob("*.png")):
        files.append(File.generated(config, f"figures/{figure.name}", abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to results/figures, which are right in the repository, point into the site; draw tables of recipes."""
    markdown = re.sub(r"<!-- recipes: (\w+) -->", lambda match: recipe_table(match[1]), markdown)
    here = os.path.dirname(page.file.src_uri)
    target = os.path.relpath("figures", here or ".").replace(os.sep, "/")
    # Others stand in the page itself, down to <!-- end -->, see `paper_figures.quantizer_table`.
    markdown = re.sub(rf"<!-- table: ({'|'.join(TABLES)}) -->", lambda found: TABLES[found[1]](), markdown)
    return re.sub(r"\]\((?:\.\./)*results/figures/", f"]({target}/", markdown)
