"""--help of every module that can be run: it explains, runs nothing, and an unknown option is an error."""

import runpy
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from experiments import cli
from experiments.command_help import comments

ROOT = cli.CONFIGS.parent
COMMANDS = sorted(
    f"{folder}.{file.stem}"
    for folder in ("experiments", "paper_figures")
    for file in (ROOT / folder).glob("*.py")
    if 'if __name__ == "__main__"' in file.read_text(encoding="utf-8")
)
# Commands whose options are a config: the keys of configs/NAME.yaml.
WITH_CONFIGS = sorted(file.stem for file in cli.CONFIGS.glob("*.yaml") if not file.stem.startswith("hydra_"))


@pytest.fixture
def started(monkeypatch, capfd, tmp_path):
    """started("experiments.demo", "--help") -> (status, stdout, stderr), as `python -m` does, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        monkeypatch.delitem(sys.modules, module, raising=False)
        GlobalHydra.instance().clear()
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            GlobalHydra.instance().clear()
        return status, *capfd.readouterr()

    return call


@pytest.mark.parametrize("module", COMMANDS)
def test_help_explains_and_runs_nothing(module, started, tmp_path):
    status, out, err = started(module, "--help")
    assert (status, err) == (0, "")
    assert out.startswith("usage: ")
    assert len(out.splitlines()) > 5
    assert not list(tmp_path.iterdir())
    status, _, err = started(module, "--no-such-option")
    assert status == 2
    assert "--no-such-option" in err or "arguments are required" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WITH_CONFIGS)
def test_help_shows_every_option_with_its_comment_and_only_its_groups(name, started):
    _, out, _ = started(f"experiments.{name}", "--help")
    text = (cli.CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    _, explained = comments(text)
    words = " ".join(out.replace("# ", "").split())
    for comment in explained.values():
        assert comment in words
    for key in [line.partition(":")[0] for line in text.splitlines() if line[:1].isalpha()]:
        assert key == "defaults" or f"\n  {key}=" in out or f"\n  {key}." in out
        assert key in ("defaults", "classifier") or any(path.split(".")[0] == key for path in explained), (
            f"{key} in configs/{name}.yaml has no comment"
        )
    groups = [folder.name for folder in cli.CONFIGS.iterdir() if folder.is_dir()]
    shown = {group for group in groups if any(line.startswith(f"  {group}=") for line in out.splitlines())}
    assert shown == {group for group in groups if f"- {group}:" in text}


def test_help_follows_the_choices(started, tmp_path):
    _, out, _ = started("experiments.train", "--help", "quantizer=dorefa2", "augment=crop_flip")
    assert "quantizer=dorefa2" in out
    assert "2/2: DoReFa-Net" in out
    assert "  # pixels of the mean on each side\n  augment.padding=4\n" in out
    (tmp_path / "mine" / "quantizer").mkdir(parents=True)
    (tmp_path / "mine" / "quantizer" / "own.yaml").write_text("# of my own\ndefaults: [fp32]\nname: own\nlabel: own\n")
    _, out, _ = started("experiments.train", "--config-dir", "mine", "--help", "quantizer=own")
    assert "of my own" in out
