"""The folder of compiled machine code: found, read, written and cleaned up, and never the reason why a call fails.

The folder is named by a hash over every source file of the package, the Numba version and the Python version: Numba's
own cache looks only at the file of the function itself, so a change in a helper module would leave stale machine code
behind. Each compiled signature is a file of its own, moved into place whole, so that several processes can fill the
cache at once. A file says by a SHA-256 for which code it is and that it is whole; what is damaged or of another
version is compiled again. What cannot be written stays in memory, and that is said once.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import re
import secrets
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import compiler
from numba.core.serialize import dumps

VARIABLE = "BNN_KERNELS_CACHE"
SUFFIX = ".nbc"
# A folder of another version in which nobody looked for so long is removed.
STALE_SECONDS = 30 * 24 * 3600


def package_root() -> Path:
    """Return the folder of this package, wherever in it this file lies."""
    return Path(str(sys.modules[__name__.partition(".")[0]].__file__)).parent


@functools.cache
def package_digest() -> str:
    """Return 16 hex digits over the package's source files, with their places in it, Numba's version and Python's."""
    digest = hashlib.sha256(f"{numba.__version__} {sys.version}".encode())
    root = package_root()
    for place, source in sorted((file.relative_to(root).as_posix(), file) for file in root.rglob("*.py")):
        content = source.read_bytes()
        digest.update(f"{place}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


@functools.cache
def cache_root() -> Path | None:
    """Return the folder that holds the machine code of all versions, None if there is no place for it.

    The first of $BNN_KERNELS_CACHE, $NUMBA_CACHE_DIR, $XDG_CACHE_HOME (only if absolute, as its specification demands)
    and the home folder's .cache that is set. A relative path counts from where the process was when it first asked.
    """
    for variable, within in ((VARIABLE, ""), ("NUMBA_CACHE_DIR", "bnn_kernels")):
        named = os.environ.get(variable)
        if named:
            return Path(os.path.abspath(os.path.expanduser(named))) / within
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):
        return Path(xdg) / "bnn_kernels"
    try:
        home = Path.home()
    except (RuntimeError, KeyError):
        return None
    return home / ".cache" / "bnn_kernels" if home.is_absolute() else None


def cache_folder() -> Path | None:
    """Return the folder of this version's machine code, None if there is no place for it."""
    root = cache_root()
    return None if root is None else root / package_digest()


_said: list[str] = []


def say_once(reason: str) -> None:
    """Warn that machine code is not kept; where warnings are errors, say it on stderr: no call fails for it."""
    if _said:
        return
    _said.append(
        f"compiled kernels are not kept for other processes, each compiles them anew: {reason}. "
        f"Set the environment variable {VARIABLE} to a folder that can be written"
    )
    try:
        warnings.warn(_said[0], RuntimeWarning, stacklevel=2)
    except RuntimeWarning:
        with contextlib.suppress(OSError, AttributeError):
            print(f"RuntimeWarning: {_said[0]}", file=sys.stderr)


@functools.cache
def _used(folder: Path) -> None:
    """Note that somebody uses a folder, once for each process."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def remove_stale(root: Path, own: str) -> None:
    """Remove folders of other versions that nobody used for a month.

    A process that still uses one finds no files, compiles again and makes the folder anew.
    """
    with contextlib.suppress(OSError):
        for folder in root.iterdir():
            if folder.name == own or not re.fullmatch("[0-9a-f]{16}", folder.name):
                continue
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                    for file in folder.iterdir():
                        if file.suffix in (SUFFIX, ".tmp"):
                            file.unlink()
                    folder.rmdir()


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, whoever else writes it."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path.parent.parent, path.parent.name)
    temporary = path.with_name(f"{os.getpid()}-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def not_kept() -> str:
    """Return why compiled kernels are not kept, "" if nothing stood in the way so far."""
    return _said[0] if _said else ""


class KernelCache:
    """The compiled signatures of one function, as Numba's dispatcher asks for them."""

    def __init__(self, function: Callable[..., Any]):
        self._name = f"{function.__module__}.{function.__qualname__}"
        self._code = hashlib.sha256(function.__code__.co_code).hexdigest()

    @property
    def cache_path(self) -> str | None:
        """The folder."""
        folder = cache_folder()
        return None if folder is None else str(folder)

    def _file(self, signature: Any, codegen: Any) -> tuple[Path | None, bytes]:
        """Return the file of a signature and what it is made of."""
        # Numba's key holds a pickle of what a closure refers to, which for compiled helpers differs from process to
        # process; the names of kernels and the folder stand for that.
        key = repr((self._name, self._code, signature, codegen.magic_tuple(), package_digest())).encode()
        name = re.sub(r"[^\w.]+", "_", self._name.removeprefix("bnn_kernels."))[-80:]
        folder = cache_folder()
        return None if folder is None else folder / f"{name}.{hashlib.sha256(key).hexdigest()[:20]}{SUFFIX}", key

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return what another process compiled for a signature, None if there is nothing that can be trusted."""
        target_context.refresh()
        try:
            file, key = self._file(signature, target_context.codegen())
            if file is None:
                return None
            content = file.read_bytes()
            digest, data = content[:32], content[32:]
            if hashlib.sha256(key + data).digest() != digest:
                return None
            found = compiler.CompileResult._rebuild(target_context, *pickle.loads(data))
        except Exception:
            # Not there, not readable, or not what this process can use: it is compiled, whatever the reason was.
            return None
        _used(file.parent)
        return found

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep what was compiled for a signature, if that is possible."""
        try:
            file, key = self._file(signature, result.codegen)
            if file is None:
                say_once("there is no home folder")
                return
            data = dumps(result._reduce())
            _write(file, hashlib.sha256(key + data).digest() + data)
        except OSError as error:
            say_once(f"{cache_root()} cannot be written ({error.strerror or error})")
        except Exception as error:
            say_once(f"{self._name} cannot be stored ({error!r})")

    def enable(self) -> None:
        """Do nothing: the cache is always on."""

    def disable(self) -> None:
        """Do nothing: the cache is always on."""

    def flush(self) -> None:
        """Do nothing: files are written at once."""
