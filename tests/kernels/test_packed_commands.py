"""python -m bnn_kernels: the cache is filled at build time, and every mistake ends with one line and status 2."""

import os
import subprocess
import sys
from pathlib import Path

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.__main__ import main
from bnn_kernels.bits.storage import to_dense_bits
from bnn_kernels.compile import cache as jit_cache
from rich_plan import rich_inputs, rich_model


def small_model():
    """Bits, a float layer and a pool; kernels of each."""
    rng = np.random.default_rng(0)
    pack = {"thresholds": np.zeros((1, 1), np.float32), "flip": np.zeros(1, bool), "codes": np.array([1, 0], np.uint8)}
    geometry = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    attrs = {"shape": [32, 8, 3, 3], **geometry, "pad_level": 0, "terms": [{"multipliers": [1], "signed": True}]}
    bits = to_dense_bits((rng.random((32, 8, 3, 3)) < 0.5).astype(np.uint8), 1)
    signs = {"thresholds": np.zeros((1, 32), np.int32), "flip": np.zeros(32, bool), "codes": pack["codes"]}
    attrs |= {"output": "bits", "signed": True, "multipliers": [1]}  # compiled sooner than floats
    steps = [
        bk.StepSpec("pack", ["x"], ["a"], {"signed": True, "multipliers": [1]}, pack),
        bk.StepSpec("binary_conv", ["a"], ["b"], attrs, {"bits.0": bits} | signs),
        bk.StepSpec("unpack", ["b"], ["u"], {"scale": 0.5}),
        bk.StepSpec("reshape", ["u"], ["c"], {"shape": [32 * 36]}),
        bk.StepSpec(
            "float_linear", ["c"], ["d"], {"shape": [3, 1152]}, {"weight": rng.random((3, 1152)).astype(np.float32)}
        ),
    ]
    return bk.PackedModel((8, 6, 6), steps)


LATER = """
import sys, time
import numpy as np
import bnn_kernels as bk
from bnn_kernels.model import warm
with warm.compilations() as found:
    model = bk.load(sys.argv[1])
    for threads in (1, 2):
        bk.set_num_threads(threads)
        for images in (1, 3):
            x = np.random.default_rng(0).standard_normal((images, 8, 6, 6))
            y = [model(z) for z in (x.astype(np.float32),) * 5 + (x, np.asfortranarray(x), x[::-1])]
        readonly = x.astype(np.float32)
        readonly.flags.writeable = False
        assert np.array_equal(model(readonly), y[0])
print(found.count)
"""


def test_a_warmed_model_compiles_nothing(tmp_path):
    file = str(tmp_path / "model.safetensors")
    small_model().save(file)
    environment = {**os.environ, "BNN_KERNELS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "bnn_kernels", "warm", file, "--batch", "1", "3", "--threads", "1", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    compiled = int(done.stdout.split()[0])
    assert compiled > 5
    assert f"kept in {tmp_path / 'cache'}" in done.stdout
    assert len(list(tmp_path.glob("cache/*/*.nbc"))) == compiled
    command = [sys.executable, "-c", LATER, file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == ["0"]


def test_a_cache_that_cannot_be_filled_is_said(tmp_path):
    select = bk.StepSpec("select", ["x"], ["y"], {}, {"channels": np.array([1, 0], np.int32)})
    bk.PackedModel((4,), [select]).save(tmp_path / "model.safetensors")
    (tmp_path / "cache").write_text("x")
    environment = {**os.environ, "BNN_KERNELS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "bnn_kernels", "warm", str(tmp_path / "model.safetensors"), "--batch", "1"]
    command += ["--threads", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "Set the environment variable BNN_KERNELS_CACHE" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "rich.safetensors"
    rich_model().save(path)
    return str(path)


def test_what_the_commands_print(file, capsys):
    main(["info"])
    text = capsys.readouterr().out
    for word in (bk.__version__, bk.cpu_features()["isa"], str(jit_cache.cache_folder())):
        assert word in text
    main(["summary", file])
    assert capsys.readouterr().out.strip().endswith(rich_model().summary())
    main(["summary", file, "--batch", "2"])
    assert "us" in capsys.readouterr().out.splitlines()[1].split()
    main(["verify", file])
    assert "whole" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["warm", "summary", "verify", "bench", "run"])
def test_files_that_are_none(command, file, tmp_path, capsys):
    cut = tmp_path / "cut"
    cut.write_bytes(Path(file).read_bytes()[:-1])
    for path in (tmp_path / "nothing", tmp_path, cut):
        with pytest.raises(SystemExit) as stopped:
            main([command, str(path), *(["in.npy", "out.npy"] if command == "run" else [])])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["warm"],
        ["warm", "f", "--batch", "0"],
        ["warm", "f", "--threads", "x"],
        ["verify"],
        ["run", "f"],
        ["run", "f", "in.npy"],
        ["bench", "f", "--seconds", "0"],
    ],
)
def test_mistyped_commands(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m bnn_kernels" in capsys.readouterr().err


def test_run_writes_what_the_model_returns(file, tmp_path, capsys):
    inputs, expected = rich_inputs(2), rich_model()(*rich_inputs(2))
    np.savez(tmp_path / "in.npz", *inputs)
    main(["run", file, str(tmp_path / "in.npz"), str(tmp_path / "out.npz")])
    assert "float32 (2, 5)" in capsys.readouterr().out
    with np.load(tmp_path / "out.npz") as found:
        assert found.files == ["output0", "output1"]
        assert all(np.array_equal(found[name], y) for name, y in zip(found.files, expected, strict=True))
    small, x = small_model(), np.random.default_rng(0).standard_normal((3, 8, 6, 6)).astype(np.float32)
    small.save(tmp_path / "small.safetensors")
    np.save(tmp_path / "in.npy", x)
    main(["run", str(tmp_path / "small.safetensors"), str(tmp_path / "in.npy"), str(tmp_path / "out.npy")])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), small(x))
    assert {path.name for path in tmp_path.iterdir()} == {"in.npz", "in.npy", "out.npz", "out.npy", "small.safetensors"}


def test_run_refuses_in_one_line_and_writes_nothing(file, tmp_path, capsys):
    np.savez(tmp_path / "in.npz", *rich_inputs(2))
    np.save(tmp_path / "one.npy", rich_inputs(2)[0])
    np.savez(tmp_path / "shapes.npz", *rich_inputs(2)[::-1])
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "empty.npy").write_bytes(b"")
    for given, made, words in (
        ("in.npz", "out.txt", "must be named .npy"),
        ("in.npz", "out.npy", "returns 2 arrays"),
        ("in.npz", "no/out.npz", "No such file"),
        ("one.npy", "out.npz", "takes 2 inputs, got 1"),
        ("shapes.npz", "out.npz", "must have shape"),
        ("objects.npy", "out.npz", "no .npy or .npz file"),
        ("text.npy", "out.npz", "no .npy or .npz file"),
        ("empty.npy", "out.npz", "no .npy or .npz file"),
        ("absent.npy", "out.npz", "no .npy or .npz file"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["run", file, str(tmp_path / given), str(tmp_path / made)])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert not list(tmp_path.glob("out*"))


def test_bench_prints_a_row_for_each_batch_and_number_of_threads(file, capsys):
    before = bk.get_num_threads()
    main(["bench", file, "--batch", "1", "3", "--threads", "1", "2", "--seconds", "0.01"])
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head[:2] == ["batch", "threads"]
    assert [row[:2] for row in rows] == [["1", "1"], ["3", "1"], ["1", "2"], ["3", "2"]]
    for row in rows:
        median, best, calls = float(row[2]), float(row[3]), int(row[5])
        assert 0 < best <= median
        assert calls >= 5
    assert bk.get_num_threads() == before
