"""The choice of a kernel by CPU features."""

import os
import subprocess
import sys

import bnn_kernels as bk
import pytest
from bnn_kernels import isa

CODE = "import bnn_kernels as bk; print(bk.cpu_features()['isa'])"


def chosen(**environment):
    return subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_every_possible_path_can_be_forced():
    features = bk.cpu_features()
    assert features["isa"] == os.environ.get("BNN_KERNELS_ISA", features["possible"][0])
    assert features["possible"][-1] == "generic"
    for path in features["possible"]:
        assert chosen(BNN_KERNELS_ISA=path).stdout.split() == [path]


def test_impossible_paths_are_refused():
    assert "must be one of avx512, avx2, neon, generic, got 'sse9'" in chosen(BNN_KERNELS_ISA="sse9").stderr
    absent = next(path for path in isa.PATHS if path not in bk.cpu_features()["possible"])
    assert f"BNN_KERNELS_ISA={absent} needs" in chosen(BNN_KERNELS_ISA=absent).stderr


@pytest.mark.parametrize(
    ("features", "path"),
    [("", "generic"), ("+avx2", "avx2"), ("+avx2,+avx512f,+avx512vpopcntdq", "avx512"), ("+neon", "neon")],
)
def test_the_compilers_features_decide(features, path, monkeypatch):
    monkeypatch.setattr(isa.config, "CPU_NAME", "generic")
    monkeypatch.setattr(isa.config, "CPU_FEATURES", features)
    monkeypatch.delenv("BNN_KERNELS_ISA", raising=False)
    isa._features.cache_clear()
    isa.isa.cache_clear()
    try:
        assert isa.isa() == path
    finally:
        isa._features.cache_clear()
        isa.isa.cache_clear()
