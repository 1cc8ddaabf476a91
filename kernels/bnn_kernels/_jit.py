"""The one place where kernels get their compiler flags and their cache.

Numba's own cache looks only at the file of the function itself, so a change in a helper module would leave stale
machine code behind. Here the cache folder is named by a hash over every source file of the package, the Numba
version and the Python version, and each compiled signature is a file named by its key and moved into place whole,
so that several processes can fill the cache at once.
"""

import functools
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numba
from numba.core import caching


@functools.cache
def package_digest() -> str:
    """Return 16 hex digits over all source files of this package, Numba's version and Python's."""
    digest = hashlib.sha256(f"{numba.__version__} {sys.version}".encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Return the folder of this version's machine code: $BNN_KERNELS_CACHE or the user's cache folder."""
    root = os.environ.get("BNN_KERNELS_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bnn_kernels"
    return base / package_digest()


class _Locator(caching._CacheLocator):
    def __init__(self, py_func: Callable, py_file: str):
        self._py_file = py_file
        self._name = f"{py_func.__module__}.{py_func.__qualname__}"

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return package_digest()

    def get_disambiguator(self) -> str:
        return hashlib.sha256(self._name.encode()).hexdigest()[:10]

    @classmethod
    def from_function(cls, py_func: Callable, py_file: str) -> "_Locator | None":
        locator = cls(py_func, py_file)
        try:
            locator.ensure_cache_path()
        except OSError:
            return None
        return locator


class _KeyedFiles(caching.IndexDataCacheFile):
    """One file a signature, named by the signature: no index that two processes could overwrite."""

    def save(self, key: Any, data: Any) -> None:
        self._save_data(self._file_name(key), data)

    def load(self, key: Any) -> Any:
        try:
            return self._load_data(self._file_name(key))
        except OSError:
            return None

    def _file_name(self, key: Any) -> str:
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        return f"{self._index_name.removesuffix('.nbi')}.{digest}.nbc"


class _Impl(caching.CompileResultCacheImpl):
    # A read-only home folder must not stop anybody: Numba's own places come second.
    _locator_classes: ClassVar[list[type]] = [_Locator, *caching.CacheImpl._locator_classes]  # type: ignore[assignment,misc]


class _Cache(caching.FunctionCache):
    _impl_class = _Impl

    def __init__(self, py_func: Callable):
        super().__init__(py_func)
        self._cache_file = _KeyedFiles(self._cache_path, self._impl.filename_base, package_digest())

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        # The file's name and folder already stand for the code. Numba's key holds a pickle of what a closure refers to,
        # which for compiled helpers differs from process to process.
        return sig, codegen.magic_tuple()


def jit(function: Callable) -> Any:
    """Compile a kernel.

    nogil: kernels run in several threads at once. boundscheck off and error_model numpy: no hidden branches in inner
    loops; every public function checks shapes before it calls a kernel. No fastmath: the order of float operations
    is part of what a packed model promises.
    """
    dispatcher = numba.njit(nogil=True, boundscheck=False, error_model="numpy")(function)
    dispatcher._cache = _Cache(function)  # type: ignore[attr-defined]
    return dispatcher


def inline(function: Callable) -> Any:
    """Compile a helper that is called from kernels only and always inlined into them (not cached by itself).

    Left to LLVM, a helper that hands back several vectors is called through memory, at 50-100 ns a call.
    """
    return numba.njit(nogil=True, boundscheck=False, error_model="numpy", forceinline=True)(function)
