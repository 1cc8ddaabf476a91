"""FSDD, the Free Spoken Digit Dataset: digits spoken by six people, downloaded once, checked, or read from a folder."""

import hashlib
import io
import re
import tarfile
import wave
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from bnn.data.audio import AudioData, AudioSplit
from bnn.data.errors import DataError
from bnn.data.files import downloaded, folder_of

COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
MIRRORS = ("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/",)
# Archives that are made anew when they are asked for have no fixed checksum, so the recordings themselves are checked.
DIGEST = "3d037c9004f3f2b00c63486fc9366da0"
RATE = 8000
# Recordings of a speaker and a digit: the official test split, and ours of validation; the others are to train on.
TEST, VALIDATION = range(5), range(5, 10)
_NAME = re.compile(r"(\d)_(\w+)_(\d+)\.wav")


def fsdd(root: str | None = None, download: bool = True, length: int = 8000) -> AudioData:
    """Return FSDD: 2,400 training, 300 validation and 300 test recordings of the digits 0 .. 9, 8 kHz, as (1, length).

    Of the 50 recordings of a speaker and a digit the official split tests 0 .. 4, and 5 .. 9 validate here. length:
    samples; the middle is cut out of longer recordings, and shorter ones have silence around them. root: a folder with
    the 3,000 .wav files, or with a subfolder `recordings` (of `fsdd`) that has them; without it the archive of the
    repository is downloaded once into the user's cache (not if download is False). The recordings are checked by their
    MD5s. Source: github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0. DataError says what is missing or
    damaged and what to do.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise DataError(f"data.length must be a number of samples of at least 1, got {length!r}")
    files = _of_archive(download) if root is None else _of_folder(root)
    found = digest(files)
    if found != DIGEST:
        where = "the archive in the cache" if root is None else root
        raise DataError(
            f"{where} holds {len(files):,} recordings of FSDD with the digest {found}; its 3,000 have {DIGEST}. "
            f"Remove it and fetch the repository's commit {COMMIT[:7]} again"
        )
    groups: dict[str, tuple[list[np.ndarray], list[int]]] = {
        "train": ([], []),
        "validation": ([], []),
        "test": ([], []),
    }
    for name in sorted(files):
        match = _NAME.fullmatch(name)
        assert match is not None
        number = int(match[3])
        split = "test" if number in TEST else "validation" if number in VALIDATION else "train"
        groups[split][0].append(fitted(read_wav(files[name], name), length))
        groups[split][1].append(int(match[1]))
    train, validation, test = (
        AudioSplit(torch.from_numpy(np.stack(sounds))[:, None], torch.tensor(labels, dtype=torch.int64))
        for sounds, labels in groups.values()
    )
    return AudioData("fsdd", train, validation, test, num_classes=10, rate=RATE, classes=tuple(map(str, range(10))))


def digest(files: Mapping[str, bytes]) -> str:
    """Return the MD5 of the lines "name MD5-of-its-content" of files, in the order of their names."""
    lines = (f"{name} {hashlib.md5(files[name]).hexdigest()}\n" for name in sorted(files))
    return hashlib.md5("".join(lines).encode()).hexdigest()


def read_wav(content: bytes, name: str) -> np.ndarray:
    """Return int16 (samples,) of a .wav file of one channel, 16 bits, 8 kHz; DataError names any other."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            form = file.getnchannels(), 8 * file.getsampwidth(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise DataError(f"{name} is no .wav file that can be read: {error}") from error
    if form != (1, 16, RATE):
        raise DataError(f"{name} must be of 1 channel, 16 bits and {RATE} Hz, got {form[0]}, {form[1]} and {form[2]}")
    return np.frombuffer(frames, "<i2").astype(np.int16)


def fitted(sound: np.ndarray, length: int) -> np.ndarray:
    """Return the middle `length` samples of a sound, with zeros around it if it is shorter."""
    if len(sound) >= length:
        first = (len(sound) - length) // 2
        return sound[first : first + length]
    before = (length - len(sound)) // 2
    return np.pad(sound, (before, length - len(sound) - before))


def _of_folder(root: str) -> dict[str, bytes]:
    folder = folder_of(root, "FSDD's recordings")
    for place in (folder, folder / "recordings", folder / "fsdd" / "recordings"):
        files = [path for path in sorted(place.glob("*.wav")) if _NAME.fullmatch(path.name)]
        if files:
            return {path.name: path.read_bytes() for path in files}
    raise DataError(
        f"{folder} has no recordings such as 0_george_0.wav, nor have its subfolders recordings and fsdd/recordings; "
        "give the folder with FSDD's recordings, or leave data.root out to download them"
    )


def _of_archive(download: bool) -> dict[str, bytes]:
    path = downloaded("FSDD", f"{COMMIT}.tar.gz", None, MIRRORS, "fsdd", download)
    try:
        with tarfile.open(path) as archive:
            return dict(_recordings(archive))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}): it is damaged, remove it and fetch it again") from error


def _recordings(archive: tarfile.TarFile) -> Iterable[tuple[str, bytes]]:
    for member in archive:
        path = Path(member.name)
        file = archive.extractfile(member)
        if path.parent.name == "recordings" and _NAME.fullmatch(path.name) and file is not None:
            yield path.name, file.read()
