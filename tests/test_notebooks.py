"""The notebooks: without outputs in the repository, and they run from the first cell to the last."""

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_holds_no_outputs(path):
    content = json.loads(path.read_text())
    assert content["nbformat"] == 4
    assert content["cells"][0]["cell_type"] == "markdown"
    assert "".join(content["cells"][0]["source"]).startswith("# ")
    for cell in content["cells"]:
        assert not cell.get("outputs"), "clear the outputs: jupyter nbconvert --clear-output --inplace FILE"
        assert cell.get("execution_count") is None
        assert set(cell["metadata"]) == set()
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    """In a kernel of its own, as a user runs it; needs the extra `docs`."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "kernels")]))
    notebook = nbformat.read(path, as_version=4)
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if output.get("text")
    )
    shares = [float(share) for share in re.findall(r"(\d+\.\d+) ?(?:%|\+-)", printed)]
    assert shares, "no accuracy was printed"
    assert max(shares) > 50  # guessing is 10
