"""suite=networks on a tiny network: every side is there, checked, and the file says what was measured."""

import json

import bnn_kernels as bk
import pytest
import torch
from torch import nn

from experiments import network_peers, timing

TINY = ("suite=networks", "batch_sizes=[1,2]", "threads=[1,99]", "seconds=0.05", "least_calls=1")


def test_a_network_is_timed_beside_its_peers(command, tmp_path, monkeypatch):
    monkeypatch.setattr(network_peers, "has_openvino", lambda: False)
    file = tmp_path / "networks.json"
    done = command("experiments.benchmark", *TINY, "networks=[digits_cnn/lsq4_8/int8]", f"output={file}")
    assert done.status == 0, done.err
    assert "OpenVINO is not installed" in done.out
    assert "99 threads are left out" in done.out
    found = json.loads(file.read_text())
    assert [row["name"] for row in found["networks"]] == ["DigitsCNN/int8 lsq4_8"]
    for network in found["networks"]:
        assert network["file_bytes"] < network["fp32_bytes"]
        for side in ("packed", "fp32"):
            assert network["memory"][side]["peak_bytes"] >= network["memory"][side]["imports_bytes"] > 1e7
    assert [(row["batch"], row["threads"]) for row in found["latency"]] == [(1, 1), (2, 1)]
    for row in found["latency"]:
        for side in ("packed_us", "eager", "frozen"):
            low, high = row[side]["quartiles"]
            assert 0 < row[side]["best"] <= low <= row[side]["median"] <= high
        for peer in ("eager", "frozen"):
            assert row[peer]["ratio"]["median"] == pytest.approx(row[peer]["median"] / row["packed_us"]["median"], 0.05)
        assert "openvino" not in row
    assert {"command", "versions", "hardware", "kernels"} <= set(found)


def test_a_wrong_network_is_not_timed(command, monkeypatch):
    import bnn

    right = bnn.convert

    def wrong(model, images):
        other = type(model)().eval()  # other weights
        return right(other, images)

    monkeypatch.setattr(bnn, "convert", wrong, raising=False)
    with pytest.raises(RuntimeError, match="nothing to time"):
        command("experiments.benchmark", *TINY, "networks=[lenet5]", "output=null")


def test_a_peer_with_other_outputs_is_refused(monkeypatch):
    monkeypatch.setattr(network_peers, "frozen", lambda model, x: lambda x: model(x) + 1)
    twin = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()).eval()
    with pytest.raises(RuntimeError, match="frozen gives other outputs"):
        network_peers.make_peers(twin, torch.randn(1, 1, 5, 5), 1, False)


def test_peers_of_a_network_with_batch_norm_that_is_not_affine():
    twin = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8, affine=False), nn.Flatten()).eval()
    peers = network_peers.make_peers(twin, torch.randn(2, 3, 8, 8), 1, False)
    assert set(peers) == {"eager", "eager, channels last", "frozen", "frozen, channels last"}
    assert not twin[2].affine


def test_openvino_answers_like_pytorch():
    pytest.importorskip("openvino")
    twin = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()).eval()
    peers = network_peers.make_peers(twin, torch.randn(1, 1, 5, 5), 1, True)
    assert "openvino" in peers


@pytest.fixture
def side(monkeypatch):
    """Make functions that write their names to `side.calls`, beside a clock that only they and sleep move."""
    now, calls = [0.0], []
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 1.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def make(name, *seconds):
        durations = iter(seconds)

        def call():
            calls.append(name)
            now[0] += next(durations)

        return call

    def sleep(seconds):
        calls.append("-")
        now[0] += seconds

    monkeypatch.setattr(timing.time, "sleep", sleep)
    make.calls = calls
    return make


def with_threads(monkeypatch, count):
    monkeypatch.setattr(bk, "get_num_threads", lambda: count)


def test_all_sides_are_called_in_turn(side, monkeypatch):
    """Two calls each first, then blocks of a second; every other call counts."""
    with_threads(monkeypatch, 1)
    calls = side.calls
    sides = [side("a", *[0.5] * 8), side("b", 50, 60, 3, 1, 2), side("c", *[0.25] * 14)]
    a, b, c = timing.in_turn(sides, 0.0, least=3)
    assert "".join(calls) == "aabbcc" + 3 * "aabcccc"
    assert a == timing.Timing(0.5, 0.5, 6, (0.5, 0.5))
    assert b == timing.Timing(1, 2, 3, (1.5, 2.5))
    assert (c.calls, c.divided(5)) == (12, timing.Timing(0.05, 0.05, 12, (0.05, 0.05)))
    calls.clear()
    timing.in_turn([side("a", *[0.5] * 99)], 4.0, least=1)
    assert len(calls) == 2 + 8


def test_threads_of_the_side_before_fall_asleep_first(side, monkeypatch):
    """With two threads each block begins with a rest and a call, of which neither counts nor takes of the seconds."""
    with_threads(monkeypatch, 2)
    a, b = timing.in_turn([side("a", 9, 9, *[7, 0.5, 0.5] * 2), side("b", 9, 9, *[8, 1] * 2)], 4.0, least=2)
    assert "".join(side.calls) == "aabb" + 2 * "-aaa-bb"
    assert (a, b) == (timing.Timing(0.5, 0.5, 4, (0.5, 0.5)), timing.Timing(1, 1, 2, (1, 1)))
    side.calls.clear()
    timing.in_turn([side("a", *[0.5] * 99)], 4.0, least=1)  # nobody before
    assert "".join(side.calls) == "aa" + 8 * "a"
