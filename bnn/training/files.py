"""Files of a run: each is written whole or not at all, whatever happens meanwhile."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Give a path of this process alone to write to; what stands there at the end takes the name `path`.

    The folder is made. After an error nothing is left and an older file is untouched; the OSError of a full disk names
    `path`. What is no regular file (/dev/null) is written to directly.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own length: that of `path` may be as long as the file system takes.
    temporary = path.with_name(f".{os.getpid():x}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        named = {error.filename, error.filename2} - {None}
        if error.errno is not None and (not named or str(temporary) in named):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Open a text file (UTF-8, newlines as written) that takes the name `path` only when it is finished."""
    with whole_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        yield file
        file.flush()
        if temporary != path:
            os.fsync(file.fileno())  # the rename must not reach the disk before the content does


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder and below; only where no other process writes there now."""
    for file in folder.rglob(".*-*.tmp"):
        file.unlink(missing_ok=True)
