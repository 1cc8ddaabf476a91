"""Finding a data set's files: in a folder of the user's, or downloaded once into the cache, and checked."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from bnn.data.errors import DataError


def folder_of(root: str, what: str, download: bool = True) -> Path:
    """Return the folder that data.root names; DataError if it is none.

    what: the files that it should hold. download: whether they are downloaded without a root.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        instead = ", or leave it out to download" if download else ""
        raise DataError(f"data.root={root} is no folder; give the folder with {what}{instead}")
    return folder


def find(root: Path, names: Sequence[str], within: Iterable[str] = ()) -> Path | None:
    """Return the first file of one of these names in a folder or in the subfolders `within` it, None if none is."""
    for folder in (root, *(root / sub for sub in within)):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None


def check_md5(path: Path, expected: str, what: str, content: bytes | None = None) -> None:
    """Raise DataError unless a file, or the content that it holds, has this MD5. what: whose MD5 it is."""
    if content is None:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        subject = f"its MD5 is {found}"
    else:
        found = hashlib.md5(content).hexdigest()
        subject = f"the MD5 of its content is {found}"
    if found != expected:
        raise DataError(f"{path} is damaged: {subject}, {what}'s is {expected}. Remove it and fetch it again")


def checked_file(
    title: str,
    file: str,
    md5: str,
    mirrors: Sequence[str],
    within: Sequence[str],
    root: str | None,
    download: bool,
    remote: str | None = None,
) -> Path:
    """Return a file with this MD5: of data.root or its subfolders `within`, or without a root of the cache.

    title: of the data set, for messages. The cache's folder has the first name of `within`. remote: what the mirrors
    call the file, if not by its name. DataError as `downloaded`, and if data.root has no such file or another one.
    """
    if root is None:
        path = downloaded(title, file, md5, mirrors, within[0], download, remote)
    else:
        folder = folder_of(root, f"{title}'s files")
        found = find(folder, (file,), within)
        if found is None:
            raise DataError(
                f"{folder} has no {file}, nor have its subfolders {' and '.join(within)}; give the folder with "
                f"{title}'s files, or leave data.root out to download them"
            )
        path = found
    check_md5(path, md5, title)
    return path


def downloaded(
    title: str,
    file: str,
    md5: str | None,
    mirrors: Sequence[str],
    folder: str,
    allowed: bool,
    remote: str | None = None,
) -> Path:
    """Return a file of the cache, downloaded from the first mirror that has it and checked by its MD5.

    title: of the data set, for messages. md5: None where the content is checked elsewhere. mirrors: what stands before
    the file's name. folder: of the cache. remote: the name there, if it is another.
    """
    import pooch

    cache = Path(pooch.os_cache("bitplanes")) / folder
    if (cache / file).is_file():
        return cache / file
    if not allowed:
        raise DataError(f"{file} is not in the cache and data.download is false; allow it or give data.root=FOLDER")
    problem: Exception | None = None
    for mirror in mirrors:
        try:
            url = mirror + (file if remote is None else remote)
            known = None if md5 is None else f"md5:{md5}"
            return Path(pooch.retrieve(url, known, fname=file, path=cache, progressbar=True))
        except Exception as error:  # requests, urllib3, OSError and pooch's ValueError: all mean "not from here"
            problem = error
    raise DataError(
        f"{title} could not be downloaded from {' or '.join(mirrors)} ({problem}). Check the network, or put {file} "
        "into a folder and give data.root=FOLDER"
    ) from problem
