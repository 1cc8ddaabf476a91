"""Files are whole or as they were, whatever happens to their writer."""

import os
import stat
import subprocess
import sys

import pytest

from bnn.training import files
from bnn.training.files import remove_leftovers, whole_file, whole_path


def test_a_file_has_its_name_when_it_is_whole(tmp_path):
    file = tmp_path / "new" / "file"
    with whole_file(file) as stream:
        stream.write("a\nb\r\nµ")
        assert not file.exists()
    assert file.read_bytes() == "a\nb\r\nµ".encode()
    assert os.listdir(file.parent) == ["file"]
    umask = os.umask(0o22)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_an_error_leaves_what_was_there(error, tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(type(error)) as raised, whole_file(file) as stream:
        stream.write("new")
        raise error
    assert os.listdir(tmp_path) == ["file"]
    assert file.read_text() == "old"
    if isinstance(error, OSError):
        assert raised.value.filename == str(file)


def test_names_as_long_as_the_file_system_takes(tmp_path):
    file = tmp_path / ("n" * 255)
    with whole_file(file) as stream:
        stream.write("x")
    assert file.read_text() == "x"


def test_a_link_stays_one_and_a_device_is_written_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for _ in range(2):
        with whole_file(tmp_path / "link") as stream:
            stream.write("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "x"
    os.mkfifo(tmp_path / "pipe")
    with whole_path(tmp_path / "pipe") as path:
        assert path == tmp_path / "pipe"


def test_two_writers_of_one_file_tear_nothing(tmp_path):
    file = tmp_path / "file"
    with whole_file(file) as first, whole_file(file) as second:
        first.write("first")
        second.write("second")
    assert file.read_text() == "first"  # renamed last


def test_a_killed_writer_leaves_the_old_file_and_its_leftovers_go(tmp_path):
    file = tmp_path / "checkpoints" / "file"
    file.parent.mkdir()
    file.write_text("old")
    code = (
        # The file alone, for its package takes seconds to import.
        "import os, pathlib, runpy, sys\nwhole_file = runpy.run_path(sys.argv[2])['whole_file']\n"
        "with whole_file(pathlib.Path(sys.argv[1])) as stream:\n"
        "    stream.write('new'); stream.flush(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(file), files.__file__], check=False)
    assert file.read_text() == "old"
    assert len(os.listdir(file.parent)) == 2
    remove_leftovers(tmp_path)
    assert os.listdir(file.parent) == ["file"]
