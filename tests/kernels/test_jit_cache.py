"""Compiled kernels: cached on disk for other processes, and keyed by the package's content."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

CALL = """
import numpy as np, bnn_kernels as bk
from bnn_kernels.bit_tensor import _pack_by_bounds as kernel
assert bk.unpack(bk.pack(np.array([[1, -1.0]], np.float32))).tolist() == [[1, -1]]
print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
"""


def call(cache):
    environment = {**os.environ, "BNN_KERNELS_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.split()


def test_processes_share_a_cache_and_may_fill_it_at_once(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        assert [hits for hits, misses in pool.map(call, [tmp_path] * 2) if misses == "0"] in ([], ["1"])
    assert call(tmp_path) == ["1", "0"]
    (folder,) = tmp_path.iterdir()
    assert not [file for file in folder.iterdir() if file.suffix != ".nbc"]


def test_the_folder_follows_the_source(tmp_path, monkeypatch):
    from bnn_kernels import _jit

    monkeypatch.setenv("BNN_KERNELS_CACHE", str(tmp_path))
    package = tmp_path / "package"
    package.mkdir()
    (package / "_jit.py").write_text("a = 1\n")
    monkeypatch.setattr(_jit, "__file__", str(package / "_jit.py"))
    digests = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        (package / "helper.py").write_text(text)
        _jit.package_digest.cache_clear()
        digests.append(_jit.cache_folder())
    _jit.package_digest.cache_clear()
    assert digests[0] == digests[2] != digests[1]
    assert digests[0].parent == tmp_path


def test_import_needs_no_torch():
    code = "import sys, bnn_kernels; assert not {'torch', 'lightning', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
