"""Run a command of `experiments` or a figure of `paper_figures`: bitplanes NAME [option=value ...].

In a clone the same commands are `python -m experiments.NAME` and `python -m paper_figures.NAME`.
"""

import ast
import difflib
import importlib
import os
import re
import runpy
import sys
from importlib.metadata import version
from pathlib import Path

_HERE = Path(__file__).resolve().parent
# What holds `experiments`, `paper_figures` and `configs`: this folder in a wheel, the one above it in a clone.
HOME = _HERE if (_HERE / "experiments").is_dir() else _HERE.parent

USAGE = """usage: bitplanes COMMAND [option=value ...]
       bitplanes COMMAND --help
       bitplanes figures NAME [--results FILE] [--output FILE]

Binary, ternary and few-bit neural networks: train, convert to bits, measure, plot.
"""


def commands(folder: str) -> dict[str, str]:
    """Return {name: first line of the docstring} of the modules of a folder of HOME that are commands."""
    found = {}
    for file in sorted((HOME / folder).glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "\ndef main(" in text:
            description = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
            # "Train one network: python -m experiments.train experiment=NAME; ...": the user typed something else.
            found[file.stem] = re.split(": (?:python -m|bitplanes) ", description)[0].rstrip(".")
    return found


def _list(names: dict[str, str]) -> str:
    width = max(map(len, names), default=0)
    return "\n".join(f"  {name.replace('_', '-'):{width}}  {description}" for name, description in names.items())


def _find(name: str, names: dict[str, str], kind: str) -> str:
    """Return the module of a name in which - and _ are the same, or end with a message and status 2."""
    module = name.replace("-", "_")
    if module not in names:
        close = difflib.get_close_matches(module, names, 1)
        guess = f" Did you mean {close[0].replace('_', '-')}?" if close else ""
        print(f"error: there is no {kind} {name!r}.{guess} There are\n{_list(names)}", file=sys.stderr)
        sys.exit(2)
    return module


def _open_folders() -> None:
    """Let this process and those that it starts (workers of a sweep, ranks of a training) import from HOME.

    HOME comes first, then the current folder, where a user's own quantizers and models lie. PYTHONSAFEPATH keeps
    Python from putting the current folder before both: it may hold a package `experiments` of the user's.
    """
    path = [str(HOME), str(Path.cwd())]
    sys.path[:0] = path
    known = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*path, *known]))
    os.environ["PYTHONSAFEPATH"] = "1"


def main() -> None:
    """Entry point of `bitplanes` and of `python -m bitplanes`."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        known = {**commands("experiments"), "figures": "Draw a figure from a result file; without a name, list them"}
        print(f"{USAGE}\ncommands:\n{_list(known)}")
        return
    if name in ("-V", "--version"):
        print(f"bitplanes {version('bitplanes')}, bitplanes-kernels {version('bitplanes-kernels')}")
        return
    if name == "figures":
        figures = commands("paper_figures")
        if not arguments or arguments[0] in ("-h", "--help"):
            print(f"usage: bitplanes figures NAME [--results FILE] [--output FILE]\n\nfigures:\n{_list(figures)}")
            return
        module = _find(arguments[0], figures, "figure")
        _open_folders()
        sys.argv = [f"bitplanes figures {module}", *arguments[1:]]  # the name in the figure's own help
        sys.exit(importlib.import_module(f"paper_figures.{module}").main())
    module = _find(name, commands("experiments") | {"figures": ""}, "command")
    _open_folders()
    sys.argv = [f"bitplanes {module}", *arguments]
    # As `python -m experiments.NAME` would: Lightning starts the other ranks of a training by this name.
    runpy.run_module(f"experiments.{module}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
