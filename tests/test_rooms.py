"""Which room may import what (the import rules of the architecture)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STANDARD = set(sys.stdlib_module_names)
OURS = {"bitplanes", "bnn", "bnn_kernels", "experiments", "paper_figures"}

# What a room may import beside the standard library and itself.
ALLOWED = {
    "bitplanes": set(),  # the command starts the others by name
    "kernels/bnn_kernels": {"numpy", "numba", "llvmlite", "safetensors"},
    "bnn": {"torch", "numpy", "yaml"},  # yaml for the presets
    "bnn/data": {"torch", "numpy", "pooch", "sklearn"},
    "bnn/training": {"torch", "numpy", "lightning"},
    "bnn/converter": {"torch", "numpy", "bnn_kernels"},
    "experiments": {
        "torch",
        "numpy",
        "hydra",
        "omegaconf",
        "rich",
        "bnn",
        "bnn_kernels",
        "paper_figures",
        "openvino",
        "filelock",
    },
    "paper_figures": {"numpy", "matplotlib", "bnn", "torch"},  # torch for the curves of quantizers
}


def room(file):
    """The most particular room that a file lies in."""
    path = file.relative_to(ROOT)
    return max((name for name in ALLOWED if Path(name) in path.parents), key=len)


def imports(file):
    """Top-level names of everything that a file imports, also within functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module.partition(".")[0]


FILES = [
    f
    for top in ("bitplanes", "kernels", "bnn", "experiments", "paper_figures")
    for f in sorted((ROOT / top).rglob("*.py"))
]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(file):
    name = room(file)
    own = {"bnn_kernels"} if name.startswith("kernels") else {name.partition("/")[0]}
    wrong = set(imports(file)) - STANDARD - own - ALLOWED[name]
    assert not wrong, f"{name} may not import {sorted(wrong)}"


def modules(text):
    """Dotted names of everything that a module's text imports, names of a module among them."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reaches_converter(text):
    return any(f"{name}.".startswith("bnn.converter.") for name in modules(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import bnn.converter", True),
        ("from bnn import converter", True),
        ("def f():\n    from bnn.converter.parity import check", True),
        ("from bnn import converters\nimport bnn.layers", False),
    ],
)
def test_every_way_to_import_the_converter_is_seen(text, expected):
    assert reaches_converter(text) == expected


def test_nothing_else_of_bnn_imports_the_converter():
    """`import bnn` reaches numba only when convert is asked for, by the lazy import of bnn/__init__.py."""
    others = [file for file in FILES if room(file).startswith("bnn") and room(file) != "bnn/converter"]
    assert len(others) > 50
    assert [file for file in others if reaches_converter(file.read_text())] == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("bnn_kernels", ("torch", "lightning", "hydra", "matplotlib", "bnn")),
        ("bnn", ("yaml", "lightning", "numba", "bnn_kernels", "hydra", "matplotlib", "sklearn", "pooch")),
        ("bnn.data", ("lightning", "numba", "hydra", "sklearn", "pooch")),
        ("bnn.training", ("numba", "hydra", "bnn_kernels")),
        ("bnn.converter", ("lightning", "hydra", "matplotlib")),
        ("paper_figures.accuracy_vs_bits", ("torch", "lightning", "numba", "hydra")),
    ],
)
def test_an_import_loads_no_more_than_it_needs(module, absent):
    code = f"import sys, {module}; print(*({set(absent)!r} & set(sys.modules)))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []
