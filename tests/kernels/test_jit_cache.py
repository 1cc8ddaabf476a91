"""Compiled kernels: cached on disk for other processes, keyed by the package's content, and never a reason to fail."""

import errno
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from bnn_kernels.compile import cache as jit_cache
from bnn_kernels.compile.jit import jit

CALL = """
import numpy as np, bnn_kernels as bk
from bnn_kernels.bits.tensor import _pack_by_bounds as kernel
assert bk.unpack(bk.pack(np.array([[1, -1.0]], np.float32))).tolist() == [[1, -1]]
print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
"""
# Sooner compiled.
TWICE = """
from bnn_kernels.compile.jit import jit
def twice(x): return 2 * x
def thrice(x): return 3 * x
assert jit(twice)(4) == 8
"""
VARIABLES = ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "BNN_KERNELS_CACHE")


def run(code=CALL, **environment):
    """Run code with no folders set but these; return what it printed and what it said."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    kept |= {name: str(value) for name, value in environment.items()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=kept, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


def call(cache):
    return run(BNN_KERNELS_CACHE=cache)[0]


def test_processes_share_a_cache_and_may_fill_it_at_once(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        assert [hits for hits, misses in pool.map(call, [tmp_path] * 2) if misses == "0"] in ([], ["1"])
    assert call(tmp_path) == ["1", "0"]
    (folder,) = tmp_path.iterdir()
    assert not [file for file in folder.iterdir() if file.suffix != ".nbc"]


NO_HOME = "import pwd\ndef no(uid): raise KeyError(uid)\npwd.getpwuid = no\n"


def said(stderr):
    return stderr.count("are not kept for other processes")


def test_no_home_folder():
    _, stderr = run(NO_HOME + TWICE)
    assert said(stderr) == 1
    assert "there is no home folder" in stderr
    assert "Set the environment variable BNN_KERNELS_CACHE" in stderr


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"XDG_CACHE_HOME": "", "HOME": "/home"}, "/home/.cache/bnn_kernels"),
        ({"XDG_CACHE_HOME": "relative/folder", "HOME": "/home"}, "/home/.cache/bnn_kernels"),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/home"}, "/xdg/bnn_kernels"),
        ({"NUMBA_CACHE_DIR": "/numba", "XDG_CACHE_HOME": "/xdg"}, "/numba/bnn_kernels"),
        ({"BNN_KERNELS_CACHE": "/own", "NUMBA_CACHE_DIR": "/numba"}, "/own"),
        ({"BNN_KERNELS_CACHE": "~/own", "HOME": "/home"}, "/home/own"),
        ({"BNN_KERNELS_CACHE": "own"}, "own"),
    ],
)
def test_where_the_folder_is(variables, place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert jit_cache.cache_root.__wrapped__() == tmp_path / place


def test_a_relative_folder_of_ones_own_counts_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(TWICE + "import os\nos.chdir('/')\nassert jit(thrice)(4) == 12", BNN_KERNELS_CACHE="mine")[1] == ""
    assert len(list(tmp_path.glob("mine/*/*.nbc"))) == 2


def test_warnings_that_are_errors_fail_no_call():
    _, stderr = run(NO_HOME + TWICE, PYTHONWARNINGS="error::RuntimeWarning")
    assert said(stderr) == 1


def twice(x):
    return 2 * x


def thrice(x):
    return 3 * x


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of this process alone; returns its folder."""
    monkeypatch.setattr(jit_cache, "cache_root", lambda: tmp_path / "cache")
    monkeypatch.setattr(jit_cache, "_said", [])
    jit_cache.package_digest()  # read before anything is made to fail
    return tmp_path / "cache"


def hits(function=twice):
    """Compile a kernel, or load it, and call it; return whether it was loaded."""
    kernel = jit(function)
    assert kernel(7) == function(7)
    return sum(kernel.stats.cache_hits.values())


def only_file(cache):
    (file,) = cache.glob("*/*")
    assert file.suffix == ".nbc"
    return file


def test_a_kernel_is_compiled_once(cache):
    assert [hits() for _ in range(3)] == [0, 1, 1]
    only_file(cache)


NOT_KEPT = "are not kept for other processes.*{} cannot be written .*Set the environment variable BNN_KERNELS_CACHE"


def test_a_file_in_the_place_of_the_folder(cache):
    cache.write_text("x")
    with pytest.warns(RuntimeWarning, match=NOT_KEPT.format(cache)) as warned:
        assert [hits() for _ in range(3)] == [0, 0, 0]
    assert len(warned) == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("place", ["os.replace", "pathlib.Path.mkdir", "builtins.open"])
def test_a_folder_that_cannot_be_written(place, number, cache, monkeypatch):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match=NOT_KEPT.format(cache)) as warned:
        patch.setattr(place, fail)
        assert [hits() for _ in range(3)] == [0, 0, 0]
    assert len(warned) == 1
    assert not list(cache.glob("*/*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of files are POSIX")
def test_a_disk_that_fills_up(cache):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.warns(RuntimeWarning, match="File too large"):
            assert hits() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(cache.glob("*/*"))
    assert [hits(), hits()] == [0, 1]


def test_a_folder_that_can_only_be_read_is_read(cache, monkeypatch):
    hits()

    def fail(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for place in ("os.replace", "os.utime", "pathlib.Path.mkdir"):
        monkeypatch.setattr(place, fail)
    assert hits() == 1


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "byte": lambda content: content[:2000] + bytes([content[2000] ^ 1]) + content[2001:],
    "first": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "empty": lambda _: b"",
    "short": lambda _: b"short",
    "longer": lambda content: content + b"x",
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_compiled_again(damage, cache):
    hits()
    file = only_file(cache)
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    assert [hits(), hits()] == [0, 1]


def test_a_file_of_other_code_under_the_same_name(cache):
    hits()
    file = only_file(cache)
    hits(thrice)
    (other,) = {*cache.glob("*/*")} - {file}
    file.write_bytes(other.read_bytes())
    assert [hits(), hits()] == [0, 1]


def test_a_folder_in_the_place_of_a_file(cache):
    hits()
    file = only_file(cache)
    file.unlink()
    file.mkdir()
    with pytest.warns(RuntimeWarning, match=NOT_KEPT.format(cache)):
        assert hits() == 0


def test_what_cannot_be_stored_is_compiled(cache, monkeypatch):
    def fail(*_):
        raise TypeError("no pickle")

    monkeypatch.setattr(jit_cache, "dumps", fail)
    with pytest.warns(RuntimeWarning, match="twice cannot be stored"):
        assert hits() == 0


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose digest is asked for; returns what asks."""
    root = tmp_path / "package"
    (root / "inner").mkdir(parents=True)
    (root / "jit.py").write_text("a = 1\n")
    monkeypatch.setattr(jit_cache, "package_root", lambda: root)

    def digest():
        jit_cache.package_digest.cache_clear()
        return jit_cache.package_digest()

    yield root, digest
    jit_cache.package_digest.cache_clear()


def test_the_digest_follows_the_source(package):
    root, digest = package
    digests = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        (root / "helper.py").write_text(text)
        digests.append(digest())
    assert digests[0] == digests[2] != digests[1]


def test_the_digest_follows_the_places_of_files(package):
    root, digest = package
    (root / "helper.py").write_text("a = 1\n")
    before = digest()
    (root / "helper.py").rename(root / "inner" / "helper.py")
    assert digest() != before


def test_the_root_is_the_packages(tmp_path):
    assert (jit_cache.package_root() / "__init__.py").is_file()
    assert jit_cache.package_root().name == "bnn_kernels"


def test_folders_that_nobody_used_for_a_month_are_removed(cache):
    old, new, foreign = cache / "0123456789abcdef", cache / "fedcba9876543210", cache / "mine"
    for folder in (old, new, foreign):
        folder.mkdir(parents=True)
        (folder / "kernel.nbc").write_bytes(b"x")
    (old / "1-2.tmp").write_bytes(b"x")
    for folder in (old, foreign):
        os.utime(folder, (0, time.time() - jit_cache.STALE_SECONDS - 60))
    hits()
    assert sorted(path.name for path in cache.iterdir()) == sorted([new.name, "mine", jit_cache.package_digest()])
    assert (foreign / "kernel.nbc").exists()


def test_a_folder_that_is_removed_meanwhile_is_made_again(cache):
    hits()
    shutil.rmtree(cache)
    assert [hits(thrice), hits()] == [0, 0]
    assert len(list(cache.glob("*/*"))) == 2


def test_numba_still_has_what_we_use_of_its_own():
    """Names that Numba and llvmlite do not promise: this fails first when they change."""
    import numba
    from llvmlite.binding import ffi
    from numba._dispatcher import compute_fingerprint
    from numba.core import compiler, compiler_lock
    from numba.core.serialize import dumps

    assert callable(compute_fingerprint) and callable(dumps)
    kernel = numba.njit(lambda x: x)
    assert hasattr(kernel, "_cache")
    for name in ("load_overload", "save_overload", "enable", "disable", "flush", "cache_path"):
        assert hasattr(kernel._cache, name)
        assert hasattr(jit_cache.KernelCache, name)
    kernel.compile((numba.int64,))
    result = kernel.overloads[(numba.int64,)]
    assert callable(compiler.CompileResult._rebuild) and callable(result._reduce)
    assert result.codegen.magic_tuple()
    assert isinstance(result.library.get_pointer_to_function(result.fndesc.llvm_func_name), int)
    for lock in (compiler_lock.global_compiler_lock._lock, ffi.lib._lock._lock):
        assert lock.acquire(timeout=1)
        lock.release()
