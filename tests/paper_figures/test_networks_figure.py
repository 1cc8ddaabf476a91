"""Time and size of networks: the picture from a result file."""

import json

import pytest

from paper_figures import networks


def write(path, peers=("eager", "openvino")):
    facts = [{"name": f"{name} xnor", "file_bytes": 1000, "fp32_bytes": 30_000} for name in ("NIN", "LeNet5")]
    rows = [
        {"name": f["name"], "batch": batch, "threads": threads, "packed_us": {"median": 500.0 * batch}}
        | {peer: {"median": 4000.0 * batch} for peer in peers}
        for f in facts
        for batch, threads in ((1, 1), (8, 1), (1, 2))
    ]
    path.write_text(json.dumps({"networks": facts, "latency": rows, "hardware": {"cpu": "a CPU"}}))


@pytest.mark.parametrize("peers", [("eager", "openvino"), ("eager",)])
def test_the_picture_comes_from_the_file(tmp_path, peers):
    source, picture = tmp_path / "networks.json", tmp_path / "figure.png"
    write(source, peers)
    rows, cpu = networks.read(source)
    assert cpu == "a CPU"
    times = {peer: 4.0 for peer in peers} | {"packed": 0.5}
    assert rows[0] == {"name": "NIN", "ms": times, "bytes": {"eager": 30_000, "packed": 1000}}
    networks.main(["--results", str(source), "--output", str(picture)])
    assert picture.stat().st_size > 5000


@pytest.mark.parametrize(("content", "words"), [(None, "is missing"), ("{}", "is no result"), ("[", "is no result")])
def test_missing_and_other_files_are_named(tmp_path, content, words):
    source = tmp_path / "networks.json"
    if content is not None:
        source.write_text(content)
    with pytest.raises(SystemExit, match=words):
        networks.main(["--results", str(source)])
    source.write_text(json.dumps({"networks": [], "latency": [], "hardware": {"cpu": "a CPU"}}))
    with pytest.raises(SystemExit, match="no networks"):
        networks.main(["--results", str(source)])
