"""The documentation: its Python runs, its commands compose, its links lead somewhere, and the reference is whole."""

import functools
import importlib
import importlib.util
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from bnn_kernels.__main__ import parser as kernels_parser
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from quick_hydra import parsed_once

from bitplanes.__main__ import commands
from experiments import cli
from experiments.hydra_versions import instantiate
from experiments.sweep_plan import cells_of
from paper_figures import ledger_file
from paper_figures.ledger_file import read_ledger, run_rows

commands_of = functools.cache(commands)
ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {page.relative_to(DOCS).as_posix(): page.read_text() for page in sorted(DOCS.rglob("*.md"))}

# What a page takes for granted: a reader has a network, batches and a loss.
GIVEN = {
    "training.md": """
import torch, bnn
from bnn.data import Batches, digits
model = bnn.models.DigitsCNN(width=4, weight_quantizer=bnn.quantizers.SteSign, input_quantizer=bnn.quantizers.SteSign)
data = digits()
batches = list(Batches(data.train, data.normalizer(), 400, shuffle=False, seed=0))
images, _ = batches[0]
loss = torch.tensor(1.0)
"""
}
# The package without which a page's Python cannot run.
NEEDS = {"guides/interchange.md": "onnx"}
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```', re.M | re.S)

spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)


def blocks(text, *languages):
    """(title, code) of the blocks in these languages."""
    return [(title, code) for language, title, code in BLOCK.findall(text) if language in languages]


def write_files(text, folder):
    """Write the blocks that have a title as files, as a reader would."""
    for title, code in blocks(text, "python", "yaml"):
        if title:
            (folder / title).parent.mkdir(parents=True, exist_ok=True)
            (folder / title).write_text(code)


WITH_PYTHON = [name for name, text in PAGES.items() if blocks(text, "python") and name != "conversion.md"]


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python_of_a_page_runs(name, tmp_path, monkeypatch, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    exec(GIVEN.get(name, ""), names)
    for title, code in blocks(PAGES[name], "python"):
        exec(compile(code, f"{name}: {title or 'block'}", "exec"), names)


@pytest.fixture(scope="module", autouse=True)
def quick_options():
    with parsed_once():
        yield


def shell_lines():
    """(page, line) of every command in a block without a language, continued lines joined."""
    more = {name: (ROOT / name).read_text() for name in ("CONTRIBUTING.md", "README.md")}
    for name, text in (PAGES | more).items():
        for _, code in blocks(text, ""):
            for line in code.splitlines():
                if re.match(r"(bitplanes|python|pip|make)\b", line):
                    yield pytest.param(name, line, id=f"{name}: {line[:60]}")


def first_of(override):
    """An override that may be a sweep as its first choice; None for a search space and what plugins of Hydra take."""
    parsed = OverridesParser.create().parse_override(override)
    if override.startswith("hydra"):
        return None
    group, _, name = override.partition("=")
    if group in ("launcher", "sweeper"):  # a plugin that may not be installed
        assert (cli.CONFIGS / group / f"{name}.yaml").exists(), override
        return None
    if not parsed.is_sweep_override():
        return override
    return (
        f"{parsed.input_line.partition('=')[0]}={next(parsed.sweep_string_iterator())}"
        if parsed.is_choice_sweep()
        else None
    )


@pytest.mark.parametrize(("page", "line"), list(shell_lines()))
def test_a_command_is_one(page, line, tmp_path, monkeypatch):
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), line
        return
    if words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in words[2:]:
            match = re.fullmatch(r"(bitplanes|bitplanes-kernels)(?:\[(\w+)\])?", word)
            assert match, line
            assert match[2] is None or match[2] in extras, line
        return
    if words[:3] == ["python", "-m", "bnn_kernels"]:
        kernels_parser().parse_args(words[3:])
        return
    command = words[1] if words[0] == "bitplanes" else words[2].removeprefix("experiments.")
    if command == "figures" or command.startswith("paper_figures."):
        figure = words[2].removeprefix("paper_figures.").replace("-", "_")
        assert figure in commands_of("paper_figures"), line
        return
    if command.startswith("--"):
        return
    command = command.replace("-", "_")
    assert command in commands_of("experiments"), line
    rest = words[2 if words[0] == "bitplanes" else 3 :]
    searched = []
    if "--config-dir" in rest:
        at = rest.index("--config-dir")
        write_files(PAGES[page], tmp_path)
        monkeypatch.chdir(tmp_path)
        searched = [f"hydra.searchpath=[file://{Path(rest[at + 1]).resolve()}]"]
        del rest[at : at + 2]
    if "--help" in rest or not (cli.CONFIGS / f"{command}.yaml").exists():
        return
    overrides = [found for word in rest if word != "-m" and (found := first_of(word)) is not None]
    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        config = compose(command, [*searched, *overrides])
        if command == "sweep":
            assert len(cells_of(config.sweep)) > 1
        elif searched:  # the page's own files: they must also build
            monkeypatch.syspath_prepend(str(tmp_path))
            shape = instantiate(config.data).input_shape
            network = instantiate(config.model, _convert_="object")
            assert network(torch.zeros(2, *shape)).shape[0] == 2


def test_every_link_leads_somewhere():
    pages = {*PAGES, *hooks.generated_pages(), *hooks.ELSEWHERE}
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", BLOCK.sub("", text)):
            if target.startswith("http"):
                continue
            path = os.path.normpath(os.path.join(os.path.dirname(name), target)).replace(os.sep, "/")
            assert path in pages or (DOCS / path).exists(), f"{name}: {target}"


def test_the_menu_holds_every_page():
    text = re.sub(r"!!python\S*", "", (ROOT / "mkdocs.yml").read_text())

    def files(node):
        if isinstance(node, str):
            return {node}
        return set().union(*map(files, node.values() if isinstance(node, dict) else node))

    assert files(yaml.safe_load(text)["nav"]) == {*PAGES, *hooks.generated_pages()}


def test_every_public_name_is_in_the_reference():
    pages = hooks.generated_pages()
    for page, name in hooks.REFERENCE.items():
        module = importlib.import_module(name)
        text = pages[f"reference/{page}.md"]
        assert hooks.public_names(module), name
        for found in hooks.public_names(module):
            assert f"\n::: {name}.{found}\n" in text, f"{name}.{found}"
        for found in getattr(module, "__all__", ()):
            here = f"\n::: {name}.{found}\n" in text or f"`{name}.{found}`" in text
            assert here or f"{name}.{found}" in hooks.REFERENCE.values(), f"{name}.{found}"


def test_every_public_module_is_in_the_reference():
    """Packages of bnn, and bnn_kernels: new ones need a page."""
    packages = {f"bnn.{init.parent.name}" for init in (ROOT / "bnn").glob("*/__init__.py")}
    assert packages | {"bnn", "bnn_kernels"} <= set(hooks.REFERENCE.values())


def test_the_table_of_quantizers_is_that_of_the_code():
    import bnn

    table = hooks.quantizer_table()
    for file in (ROOT / "configs" / "quantizer").glob("*.yaml"):
        assert f"\n| `{file.stem}` | " in table
    for name in vars(bnn.quantizers):
        value = getattr(bnn.quantizers, name)
        if isinstance(value, type) and issubclass(value, bnn.quantizers.Quantizer) and value.__name__ == name:
            assert f"\n| [`{name}`]" in table
    assert "| `xnor` | 1/1 | [`XnorWeight`][bnn.quantizers.XnorWeight] gradient=exact |" in table
    assert "| `lsq2` | 2/2 LSQ | [`LsqWeight`][bnn.quantizers.LsqWeight] bits=2 |" in table  # what it does not inherit


def test_every_recipe_with_a_published_number_is_in_the_page_of_recipes():
    page = type("Page", (), {"file": type("File", (), {"src_uri": "guides/recipes.md"})})
    text = hooks.on_page_markdown((DOCS / "guides" / "recipes.md").read_text(), page)
    for file in (ROOT / "configs" / "experiment").glob("*.yaml"):
        published = yaml.safe_load(file.read_text()).get("published")
        rows = [line for line in text.splitlines() if line.endswith(f"| `experiment={file.stem}` |")]
        assert len(rows) == (published is not None), file.stem
        if published:
            _, model, _, value, source, _, _ = rows[0].split("|")
            assert abs(float(value.strip(" %")) - 100 * published["value"]) < 0.006
            assert source.strip() == published["source"]
            assert model.strip() == published["model"]


def test_docstrings_become_markdown():
    given = "Of a * b, <W, Q>.\n\na, b: numbers,\n    or more.\nother: text\n\n>>> f(1)\n3\n\nEnd `x*y`."
    listed = "Of a \\* b, &lt;W, Q>.\n\n\n- **a, b**: numbers,\n    or more.\nother: text\n\n\n"
    assert hooks.as_markdown(given, ["a", "b"]) == listed + "```pycon\n>>> f(1)\n3\n```\n\nEnd `x*y`."
    assert hooks.as_markdown(">>> 1\n1", ()).endswith("1\n1\n```")


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    """Every warning is an error; needs the extra `docs`. Each public name has a place that others can link to."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page, name in hooks.REFERENCE.items():
        text = (tmp_path / "site" / "reference" / page / "index.html").read_text()
        for found in hooks.public_names(importlib.import_module(name)):
            assert f'id="{name}.{found}"' in text, f"{name}.{found}"


def test_figures_are_linked_within_the_site():
    page = type("Page", (), {"file": type("File", (), {"src_uri": "concepts/x.md"})})
    assert hooks.on_page_markdown("![a](../../results/figures/a.png)", page) == "![a](../figures/a.png)"
    page.file.src_uri = "quantizers.md"
    assert hooks.on_page_markdown("![a](../results/figures/a.png)", page) == "![a](figures/a.png)"


def test_the_site_needs_nothing_from_elsewhere():
    """No fonts, scripts or pictures of other hosts."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False
    assert not any(str(entry).startswith("http") for entry in config["extra_css"] + config.get("extra_javascript", []))
    for name, text in PAGES.items():
        assert not re.search(r"!\[[^\]]*\]\(http", text), name


def teardown_module():
    sys.modules.pop("docs_hooks", None)


def test_accuracies_of_stems_are_those_of_the_result_file():
    rows = run_rows(read_ledger(ROOT / "results" / "digits_stems.json"))
    for stem in ("int8", "fp32"):
        found = [row for row in rows if (row.get("model.stem") or "fp32") == stem]
        assert len(found) == 5
        accuracies = [100 * row["test_accuracy"] for row in found]
        mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
        assert f"{mean:.2f} % (+- {deviation:.2f})" in PAGES["guides/pixels.md"].replace("\n", " ")
        assert all(row["same_predictions"] == row["test_images"] == 400 and row["parity_ok"] for row in found)


def test_the_format_of_the_ledger_is_that_of_the_code():
    shown = hooks.on_page_markdown(
        PAGES["guides/ledger.md"], SimpleNamespace(file=SimpleNamespace(src_uri="guides/ledger.md"))
    )
    fields = {
        **ledger_file.ENTRY_FIELDS,
        **ledger_file.RUN_FIELDS,
        **ledger_file.PACKED_FIELDS,
        **ledger_file.JUDGED_FIELDS,
    }
    assert all(f"| `{field}` | {meaning}" in shown for field, (_, meaning) in fields.items())
    assert f"version {ledger_file.VERSION}" in shown and ledger_file.SCHEMA in shown


@pytest.mark.parametrize("file", sorted(ROOT.glob("docs/**/*.md")), ids=lambda file: file.stem)
def test_every_table_of_a_page_is_made_or_stands_in_the_page(file):
    page = SimpleNamespace(file=SimpleNamespace(src_uri=file.relative_to(ROOT / "docs").as_posix()))
    text = file.read_text()
    shown = hooks.on_page_markdown(text, page)
    assert shown.count("<!-- table: ") == shown.count("<!-- end -->") == text.count("<!-- end -->")
    assert "<!-- recipes: " not in shown


def test_the_table_of_published_networks_has_a_line_for_each():
    rows = json.loads((ROOT / "results" / "published_networks.json").read_text())["rows"]
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/published_code.md"))
    shown = hooks.on_page_markdown("a\n\n<!-- table: published -->\n", page)
    lines = [line for line in shown.splitlines() if line.startswith("| [")]
    assert len(lines) == len(rows) and {line.count("|") for line in lines} == {7}
    for row, line in zip(rows, lines, strict=True):
        assert f"https://github.com/{row['repository']}/tree/{row['commit']}" in line and row["label"] in line
        assert len(row["commit"]) == 40 and ("layers" not in row or f"{row['on_bits']} of {row['layers']}" in line)


def test_the_table_of_architectures_of_timm_has_a_line_for_each():
    rows = json.loads((ROOT / "results" / "timm.json").read_text())["rows"]
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/published_code.md"))
    shown = hooks.on_page_markdown("a\n\n<!-- table: timm -->\n", page)
    lines = [line for line in shown.splitlines() if line.startswith("| `")]
    assert len(lines) == len(rows) and {line.count("|") for line in lines} == {9}
    for row, line in zip(rows, lines, strict=True):
        assert f"`{row['name']}`" in line and row["policy"] in line
        assert "layers" not in row or f"{row['on_bits']} of {row['layers']}" in line
        assert (" ms |" in line) == ("packed_ms" in row)


def test_the_table_of_bits_by_layer_is_that_of_the_results():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/sweeps.md"))
    shown = hooks.on_page_markdown(PAGES["guides/sweeps.md"], page)
    content = json.loads((ROOT / "results" / "bits_by_layer_mnist_layers.json").read_text())
    entries = {entry["method"]: entry for entry in read_ledger(ROOT / "results" / content["ledger"])}
    assert set(content["layers"]) == {"conv2", "linear3"}
    for one in content["assignments"]:
        accuracies = [100 * run["test_accuracy"] for run in entries[one["cell"]]["runs"]]
        mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
        (line,) = [
            line
            for line in shown.splitlines()
            if line.startswith(f"| {one['widths']['conv2']}, {one['widths']['linear3']} |")
        ]
        assert line.endswith(f"| {one['measured_us']:.0f} | {mean:.2f} ± {deviation:.2f} |")
        assert abs(one["predicted_us"] / one["measured_us"] - 1) < 0.03  # as the page says
    of_the_convolution = {one["bits"]: one["more_us"] for one in content["layers"]["conv2"]}
    assert of_the_convolution[1] < -10 and all(abs(of_the_convolution[bits]) < 5 for bits in (2, 4, 8))
    for pair in content["comparisons"]:
        assert f"{100 * pair['difference']:+.2f} points over {pair['seeds']} seeds" in shown


def test_the_table_of_distillation_pruning_and_quantization_is_that_of_the_results():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/together.md"))
    shown = hooks.on_page_markdown(PAGES["guides/together.md"], page)
    entries = {entry["method"]: entry for entry in read_ledger(ROOT / "results" / "together_mnist.json")}
    lines = [line for line in shown.splitlines() if re.match(r"\| \d+/\d+ ", line)]
    assert len(lines) == len(entries)
    sizes = {}
    for (method, entry), line in zip(entries.items(), lines, strict=True):
        bits, added = method.rsplit("/", 1)
        runs = entry["runs"]
        assert [run["seed"] for run in runs] == [0, 1, 2]
        assert all(run["same_predictions"] == run["test_images"] and run["parity_ok"] for run in runs)
        mean, deviation = statistics.mean(run["value"] for run in runs), statistics.stdev(run["value"] for run in runs)
        assert line.startswith(f"| {bits} | {added} | {100 * mean:.2f} ± {100 * deviation:.2f} |")
        sizes[method] = max(run["file_bytes"] for run in runs)
    for method, size in sizes.items():
        whole = sizes[f"{method.rsplit('/', 1)[0]}/nothing"]
        assert size < 0.4 * whole if method.endswith("channels") else abs(size - whole) < 500


def test_the_table_of_post_training_quantization_is_that_of_the_results():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/post_training.md"))
    shown = hooks.on_page_markdown(PAGES["guides/post_training.md"], page)
    content = json.loads((ROOT / "results" / "post_training_mnist.json").read_text())
    lines = [line for line in shown.splitlines() if re.match(r"\| (FP32|\d/\d) ", line)]
    assert len(content["seeds"]) == 3 and content["split"] == "test"
    assert len(lines) == 1 + len(content["rows"])
    base = statistics.mean(content["accuracy_fp32"])
    assert f"{100 * base:.2f} ± {100 * statistics.stdev(content['accuracy_fp32']):.2f}" in lines[0]
    for row, line in zip(content["rows"], lines[1:], strict=True):
        mean, deviation = statistics.mean(row["accuracy"]), statistics.stdev(row["accuracy"])
        assert line.startswith(f"| {row['bits']} |")
        assert f"| {100 * mean:.2f} ± {100 * deviation:.2f} | {round(100 * (base - mean), 2) + 0.0:.2f} |" in line
        assert row["accuracy_packed"] == row["accuracy"] and min(row["agreement_of_packed"]) == 1
        if row["bits"] == "8/8":
            assert base - mean < 0.005
