"""The packed file: a round trip, and every kind of damage refused by name."""

import errno
import json
import os

import bnn_kernels as bk
import numpy as np
import pytest
import safetensors.numpy
from bnn_kernels.bits.storage import to_dense_bits
from bnn_kernels.model import file_format


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    bits = to_dense_bits((rng.standard_normal((6, 40)) < 0).astype(np.uint8), 1)
    pack = {"thresholds": np.zeros((1, 1), np.float32), "flip": np.zeros(1, bool), "codes": np.array([1, 0], np.uint8)}
    attrs = {"shape": [6, 40], "terms": [{"multipliers": [1], "signed": True}], "output": "float"}
    tensors = {"bits.0": bits, "scale.0": rng.standard_normal(6).astype(np.float32)}
    steps = [
        bk.StepSpec("pack", ["x"], ["a"], {"signed": True, "multipliers": [1]}, pack, ["net.0 input"]),
        bk.StepSpec("binary_linear", ["a"], ["b"], attrs, tensors, ["net.0"]),
    ]
    return bk.PackedModel((40,), steps, {"model": "Tiny"}, {"torch": "0"})


@pytest.fixture
def file(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    return path


def test_round_trip(model, file):
    again = bk.load(file)
    x = np.random.default_rng(1).standard_normal((5, 40)).astype(np.float32)
    np.testing.assert_array_equal(again(x), model(x))
    assert again.steps[1].source == "net.0"
    assert (again.info, again.versions) == (model.info, model.versions)
    assert again.nbytes == model.nbytes == 30 + 24 + 4 + 1 + 2
    again.save(file)
    np.testing.assert_array_equal(bk.load(file)(x), model(x))


def test_it_is_a_plain_safetensors_file(file):
    tensors = safetensors.numpy.load(file.read_bytes())
    assert tensors["1.bits.0"].dtype == np.uint8
    assert tensors["1.bits.0"].shape == (1, 30)


def test_every_flipped_byte_is_refused(file):
    whole = file.read_bytes()
    rng = np.random.default_rng(2)
    for place in [0, 3, 7, 8, 20, len(whole) - 1, *rng.integers(0, len(whole), 300)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=str(file.name)):
            bk.load(file)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_files_are_refused(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(bk.PackedFileError, match="cut off"):
        bk.load(file)


def test_trailing_bytes_are_refused(file):
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(bk.PackedFileError, match="bytes of tensors"):
        bk.load(file)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        bk.load(tmp_path / "nothing.safetensors")


def rewrite(path, change_header=lambda header: None, change_tensors=lambda tensors: None, version=file_format.VERSION):
    """Forge: write changed content with a checksum that is right."""
    header, tensors = file_format.read(path)
    change_header(header)
    change_tensors(tensors)
    old = file_format.VERSION
    try:
        file_format.VERSION = version
        file_format.write(path, header, tensors)
    finally:
        file_format.VERSION = old


def test_other_versions_are_refused(file):
    rewrite(file, version="1")
    with pytest.raises(bk.PackedFileError, match="version '1', this library reads '2'"):
        bk.load(file)


def test_other_safetensors_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors.numpy.save({"w": np.ones(3, np.float32)}))
    with pytest.raises(bk.PackedFileError, match="not a packed model"):
        bk.load(path)


@pytest.fixture
def twins(tmp_path):
    """A packed model that adds the same 400 numbers twice, others once and a small constant twice, and its file."""
    rng = np.random.default_rng(0)
    same, other, small = (rng.standard_normal(size).astype(np.float32) for size in (400, 400, 1))
    values = [same, other, same.copy(), small, small.copy()]
    registers = "xbcdef"
    steps = [
        bk.StepSpec("by_place", [registers[i]], [registers[i + 1]], {"kind": "add"}, {"value": value})
        for i, value in enumerate(values)
    ]
    model = bk.PackedModel((400,), steps)
    model.save(tmp_path / "twins.safetensors")
    return model, tmp_path / "twins.safetensors"


def test_equal_tensors_are_stored_once(twins):
    model, path = twins
    header, tensors = file_format.read(path)
    assert header["shared"] == {"2.value": "0.value"}
    assert set(tensors) == {"0.value", "1.value", "3.value", "4.value"}
    x = np.random.default_rng(1).standard_normal((3, 400)).astype(np.float32)
    again = bk.load(path)
    assert again.nbytes == model.nbytes == (3 * 400 + 2) * 4
    assert again.stored_bytes == model.stored_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert "3,208 bytes" in repr(model) and "4,808 bytes of weights and thresholds (3,208 stored" in model.summary()
    np.testing.assert_array_equal(again(x), model(x))
    again.save(path)
    assert file_format.read(path)[0]["shared"] == header["shared"]


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        ({}, "2.value"),
        ({"2.value": "7.value"}, "7.value"),
        ({"2.value": "2.value"}, "2.value"),
        ({"2.value": "5.value", "5.value": "0.value"}, "5.value"),
        ({"2.value": "0.value", "1.value": "0.value"}, "both stored and shared.*1.value"),
        ({"2.value": "0.value", "9.value": "0.value"}, "belongs to no step"),
        ({"2.value": ["0.value"]}, "malformed header"),
        ("0.value", "malformed header"),
    ],
)
def test_forged_names_of_shared_tensors_are_refused(twins, shared, words):
    rewrite(twins[1], change_header=lambda header: header.update(shared=shared))
    with pytest.raises(bk.PackedFileError, match=words):
        bk.load(twins[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h.pop("steps"), "steps"),
        (lambda h: h.update(steps=3), "malformed header"),
        (lambda h: h["steps"][0].pop("attrs"), "attrs"),
        (lambda h: h["steps"][1].update(op="fly"), "unknown op"),
        (lambda h: h["steps"].reverse(), "pack|reads|malformed|tensor"),
        (lambda h: h["steps"][1].update(tensors=["bits.0"]), "belongs to no step"),
        (lambda h: h["steps"][1].update(tensors=["bits.1"]), "bits.1"),
        (lambda h: h["steps"][1]["attrs"].update(shape=[6, 4000]), "4000|40"),
        (lambda h: h["steps"][1]["attrs"].update(shape=[6, -1]), "shape"),
        (lambda h: h.update(inputs=[[0]]), "input shape"),
        (lambda h: h.update(inputs="ab"), "input shape"),
        (lambda h: h.update(inputs=[[1 << 40]]), "larger than any"),
        (lambda h: h.update(outputs=[["c", [6]]]), "written by no step"),
        (lambda h: h.update(outputs=[["b", [7]]]), "has not shape"),
        (lambda h: h.update(outputs=[]), "at least one output"),
    ],
)
def test_forged_headers_are_refused(file, change, words):
    rewrite(file, change_header=change)
    with pytest.raises(ValueError, match=words):
        bk.load(file)


def test_forged_tensors_are_refused(file):
    rewrite(file, change_tensors=lambda t: t.update({"1.scale.0": np.full(6, np.nan, np.float32)}))
    with pytest.raises(bk.PlanError, match="NaN"):
        bk.load(file)


def test_saving_is_whole_or_not_at_all(model, file, monkeypatch):
    before = file.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save(file)
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_header_is_json_text(file):
    size = int.from_bytes(file.read_bytes()[:8], "little")
    metadata = json.loads(file.read_bytes()[8 : 8 + size])["__metadata__"]
    assert metadata["format"] == "bitplanes"
    assert json.loads(metadata["header"])["inputs"] == [[40]]


@pytest.mark.parametrize("length", [200, 240, 255])
def test_long_names(model, length, tmp_path):
    path = tmp_path / ("n" * length)
    model.save(path)
    model.save(path)
    assert bk.load(path).nbytes == model.nbytes
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_where_a_model_cannot_be_saved(model, tmp_path, monkeypatch):
    with pytest.raises(IsADirectoryError, match=f"cannot be saved.*{tmp_path}"):
        model.save(tmp_path)
    missing = tmp_path / "no" / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=f"no folder {missing.parent}, make it first.*{missing}"):
        model.save(missing)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot be saved"):
        model.save(tmp_path / "file" / "model.safetensors")
    with pytest.raises(OSError, match="cannot be saved: File name too long"):
        model.save(tmp_path / ("n" * 256))

    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "the temporary name")

    path = tmp_path / "model.safetensors"
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match=f"cannot be saved: Permission denied: '{path}'"):
        model.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("path", [None, 3, 1.5, ["a"]])
def test_what_is_no_path(model, path):
    for call in (bk.load, model.save):
        with pytest.raises(TypeError, match="PathLike"):
            call(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        bk.load(tmp_path)
