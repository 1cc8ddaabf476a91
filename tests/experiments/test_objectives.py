"""What a run reports to a sweeper that searches, and the groups that choose launcher and sweeper."""

import json
import math
from importlib.metadata import distributions
from types import SimpleNamespace

import pytest
from conftest import TINY
from omegaconf import OmegaConf

from experiments import cli
from experiments.config_values import ConfigError
from experiments.objectives import OBJECTIVES, check_objectives, values_of

NEEDS = {"joblib": "hydra-joblib-launcher", "slurm": "hydra-submitit-launcher", "ray": "hydra-ray-launcher"}


def test_a_run_is_converted_and_timed_for_its_objectives(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert command("experiments.train", *TINY, "epochs=1", "quantizer=xnor", "run_dir=r").status == 0
    folder = tmp_path / "r"
    accuracy, size, latency = values_of(folder, OmegaConf.create(list(OBJECTIVES)))
    assert accuracy == json.loads((folder / "result.json").read_text())["accuracy"]["validation"]
    assert size == (folder / "packed.safetensors").stat().st_size
    assert 1 < latency < 1e6
    before = (folder / "conversion.json").read_bytes()
    assert values_of(folder, OmegaConf.create(["file_bytes"])) == size
    assert (folder / "conversion.json").read_bytes() == before  # it was converted once
    # Of weights that were trained further since.
    (folder / "conversion.json").write_text(json.dumps(json.loads(before) | {"steps": 0, "file_bytes": 0}))
    assert values_of(folder, OmegaConf.create(["file_bytes"])) == size


@pytest.mark.parametrize("objectives", [[], "file_bytes", ["file_byte"]])
def test_objectives_that_no_run_reports_are_refused(objectives):
    with pytest.raises(ConfigError, match="objectives"):
        check_objectives(OmegaConf.create({"objectives": objectives}))


@pytest.mark.parametrize("names", [["file_bytes"], ["file_bytes", "packed_latency_us"]])
def test_a_job_that_fails_has_as_many_values_as_objectives(names, tmp_path, monkeypatch):
    def task(config):
        raise OSError("no disk")

    mode = SimpleNamespace(
        mode=cli.RunMode.MULTIRUN, job=SimpleNamespace(num=0), overrides=SimpleNamespace(task=["seed=0"])
    )
    monkeypatch.setattr(cli.HydraConfig, "get", lambda: mode)
    monkeypatch.setenv("BITPLANES_FAILED_JOBS", str(tmp_path))
    found = cli._Job(task, (OSError,))(OmegaConf.create({"objectives": names}))
    values = found if len(names) > 1 else (found,)
    assert len(values) == len(names)
    assert all(math.isnan(value) for value in values)


@pytest.mark.parametrize("name", NEEDS)
def test_a_launcher_that_is_not_installed_says_what_installs_it(name, command):
    if any(there.metadata["Name"] == NEEDS[name] for there in distributions()):
        pytest.skip("it is installed")
    failed = command("experiments.train", "-m", f"launcher={name}")
    assert failed.status == 2
    assert f"pip install 'bitplanes[{'ray' if name == 'ray' else 'launchers'}]'" in failed.err
