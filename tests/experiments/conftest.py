"""Running the commands in this process, in a folder of their own."""

import contextlib
import importlib
import io
import sys
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from quick_hydra import parsed_once


@pytest.fixture(scope="session", autouse=True)
def quick_options():
    """Compose options once for each command, and parse each text and file of them once.

    Hydra composes them a first time to learn whether hydra.mode is among them; it nowhere is.
    """
    with parsed_once() as patch:
        patch.setattr(Hydra, "get_mode", lambda *given, **options: None)
        yield


class Outcome:
    """Exit status and what was printed."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def command(monkeypatch, capfd):
    """command("experiments.train", "option=value", ...) -> Outcome; the current folder is the test's business."""

    def call(module, *arguments):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        capfd.readouterr()
        status = 0
        try:
            importlib.import_module(module).main()
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            GlobalHydra.instance().clear()
        return Outcome(status, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def module_command():
    """module_command("experiments.train", "option=value", ..., folder=PATH) -> Outcome, for fixtures of a module."""

    def call(module, *arguments, folder):
        patch, out, err = pytest.MonkeyPatch(), io.StringIO(), io.StringIO()
        GlobalHydra.instance().clear()
        patch.chdir(folder)
        patch.setattr(sys, "argv", [module, *arguments])
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        status = 0
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                importlib.import_module(module).main()
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            GlobalHydra.instance().clear()
            patch.undo()
        return Outcome(status, out.getvalue(), err.getvalue())

    return call


TINY = ("model.width=4", "epochs=2", "trainer.enable_progress_bar=false", "batch_size=200")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with two finished runs of two epochs: runs/default/{xnor,fp32}/EXPERIMENT/seed0."""
    from experiments import train

    folder = tmp_path_factory.mktemp("trained")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["train", "-m", "quantizer=xnor,fp32", *TINY])
    try:
        train.main()
    finally:
        GlobalHydra.instance().clear()
        patch.undo()
    return Path(folder)
