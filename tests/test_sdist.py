"""The source distribution holds what its tests read: all of the repository but hidden files."""

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tracked():
    """Paths of the repository's files, relative to its root."""
    if not (ROOT / ".git").exists():
        pytest.skip("no repository: these are the tests of an unpacked distribution")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {path for path in done.stdout.splitlines() if not path.startswith(".")}


def test_every_folder_is_included(tracked):
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = config["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {f"/{path.partition('/')[0]}" for path in tracked} == {*included, "/pyproject.toml"}


def test_the_builder_takes_every_file(tracked):
    sdist = pytest.importorskip("hatchling.builders.sdist")
    found = {Path(file.distribution_path).as_posix() for file in sdist.SdistBuilder(str(ROOT)).recurse_included_files()}
    assert tracked - {"pyproject.toml"} <= found  # which it always adds
