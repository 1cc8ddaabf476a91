"""Spoken digits from files that the tests make: what is read, how it is split, and what each mistake is called."""

import io
import tarfile
import wave

import numpy as np
import pytest
import torch

import bnn
from bnn.data import AudioData, AudioSplit, DataError, RandomShift, fsdd
from bnn.data.fsdd import COMMIT, digest, fitted
from bnn.models import M5
from bnn.quantizers import SteSign, XnorWeight
from paper_figures.contact_sheet import curves

fsdd_module = __import__("sys").modules["bnn.data.fsdd"]
RNG = np.random.default_rng(0)


def wav(samples, channels=1, width=2, rate=8000):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(np.asarray(samples).tobytes())
    return file.getvalue()


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """A folder with recordings of two speakers, and the samples of each."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    samples, files = {}, {}
    for digit in range(10):
        for speaker in ("ada", "alan"):
            for number in range(12):
                name = f"{digit}_{speaker}_{number}.wav"
                samples[name] = RNG.integers(-3000, 3000, int(RNG.integers(20, 90)), np.int16)
                files[name] = wav(samples[name])
                (folder / name).write_bytes(files[name])
    (folder / "notes.txt").write_text("not a recording")
    monkeypatch.setattr(fsdd_module, "DIGEST", digest(files))
    return tmp_path, samples


def test_the_splits_go_by_the_number_of_a_recording(recordings):
    root, samples = recordings
    data = fsdd(str(root), length=60)
    assert [data.count(split) for split in ("train", "validation", "test")] == [40, 100, 100]
    assert (data.name, data.kind, data.num_classes, data.input_shape, data.rate) == ("fsdd", "audio", 10, (1, 60), 8000)
    for split, numbers in ((data.test, range(5)), (data.validation, range(5, 10)), (data.train, (10, 11))):
        expected = {
            (int(name[0]), fitted(samples[name], 60).tobytes())
            for name in samples
            if int(name.rpartition("_")[2][:-4]) in numbers
        }
        found = {
            (int(label), sound[0].numpy().tobytes()) for sound, label in zip(split.sounds, split.labels, strict=True)
        }
        assert found == expected
    again = fsdd(str(root / "recordings"), length=60)
    assert torch.equal(again.train.sounds, data.train.sounds)


def test_sounds_are_cut_and_padded_in_the_middle():
    assert fitted(np.arange(1, 6), 8).tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert fitted(np.arange(10), 4).tolist() == [3, 4, 5, 6]
    assert fitted(np.arange(3), 3).tolist() == [0, 1, 2]


def test_batches_are_normalized_by_the_training_split(recordings):
    data = fsdd(str(recordings[0]), length=60)
    sounds = torch.cat([inputs for inputs, _ in data.batches("train", 16)])
    assert sounds.dtype == torch.float32
    assert abs(float(sounds.mean())) < 1e-5
    assert abs(float(sounds.std(correction=0)) - 1) < 1e-5
    plain = data.train.sounds.double()
    torch.testing.assert_close(sounds.double(), (plain - plain.mean()) / plain.std(correction=0), rtol=1e-4, atol=1e-4)
    first, again = (list(data.batches("train", 16, shuffle=True, seed=1, augment=RandomShift(9))) for _ in range(2))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    with pytest.raises(ValueError, match="it has no pixels"):
        data.batches("train", 16, pixels=True)


def test_shifts_move_and_fill_with_silence():
    sounds = torch.arange(1.0, 11).expand(200, 2, 10)
    moved = RandomShift(3)(sounds)
    seen = set()
    for sound in moved:
        assert torch.equal(sound[0], sound[1])
        first = next(i for i in range(10) if sound[0, i] != 0)
        shift = first - int(sound[0, first]) + 1
        place = torch.arange(10) - shift
        assert torch.equal(sound[0], torch.where((place >= 0) & (place < 10), place + 1.0, 0.0))
        seen.add(shift)
    assert seen == set(range(-3, 4))
    with pytest.raises(ValueError, match="at least 0, got -1"):
        RandomShift(-1)
    with pytest.raises(ValueError, match=r"moves sounds \(N, C, L\)"):
        RandomShift(3)(torch.zeros(1, 1, 4, 4))


def test_the_archive_is_read_as_the_folder_is(recordings, tmp_path_factory, monkeypatch):
    import pooch

    root, _ = recordings
    place = tmp_path_factory.mktemp("cache")
    asked = []

    def retrieve(url, known, fname, path, progressbar):
        asked.append((url, known))
        with tarfile.open(place / fname, "w:gz") as tar:
            tar.add(root / "recordings", f"free-spoken-digit-dataset-{COMMIT}/recordings")
        return str(place / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    monkeypatch.setattr(pooch, "os_cache", lambda name: place / "bitplanes")
    assert torch.equal(fsdd(length=60).test.sounds, fsdd(str(root), length=60).test.sounds)
    assert asked == [(f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.tar.gz", None)]
    (place / f"{COMMIT}.tar.gz").write_bytes(b"no archive")
    monkeypatch.setattr(pooch, "retrieve", lambda *_, **__: str(place / f"{COMMIT}.tar.gz"))
    with pytest.raises(DataError, match="is damaged, remove it"):
        fsdd()


def test_mistakes_are_named(recordings, monkeypatch):
    root, _ = recordings
    with pytest.raises(DataError, match=r"data.length must be a number of samples"):
        fsdd(str(root), length=0)
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no recordings such as 0_george_0.wav.*leave data.root out"):
        fsdd(str(root / "empty"))
    file = root / "recordings" / "0_ada_0.wav"
    whole = file.read_bytes()
    for content, words in (
        (b"RIFF", "0_ada_0.wav is no .wav file"),
        (wav(np.zeros(40, np.int16), rate=16000), "must be of 1 channel, 16 bits and 8000 Hz, got 1, 16 and 16000"),
        (wav(np.zeros(40, np.int16), channels=2), "got 2, 16 and 8000"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"holds 240 recordings of FSDD with the digest .*its 3,000 have"):
            fsdd(str(root))
        with monkeypatch.context() as patch:
            patch.setattr(fsdd_module, "DIGEST", digest({p.name: p.read_bytes() for p in file.parent.glob("*.wav")}))
            with pytest.raises(DataError, match=words):
                fsdd(str(root))
    file.write_bytes(whole)


@pytest.mark.parametrize(
    ("sounds", "labels", "words"),
    [
        (
            torch.zeros(2, 1, 4),
            torch.zeros(2, dtype=torch.int64),
            r"sounds must be int16 \(N, C, L\), got torch.float32",
        ),
        (torch.zeros(2, 1, 4, dtype=torch.int16), torch.zeros(3, dtype=torch.int64), r"labels must be int64 \(2,\)"),
    ],
)
def test_other_tensors_are_no_sounds(sounds, labels, words):
    with pytest.raises(ValueError, match=words):
        AudioSplit(sounds, labels)


def test_a_curve_is_black_between_its_extremes():
    sound = np.zeros((1, 1, 640))
    sound[0, 0, 100:110], sound[0, 0, 300] = 8, -8
    picture = curves(sound, 33, 64)[0, 0]
    assert picture.shape == (33, 64)
    dark = picture == 0
    assert dark[16].sum() == 63  # silence, but where all of a column is loud
    assert np.flatnonzero(dark[:, 10]).tolist() == [0]
    assert np.flatnonzero(dark[:, 30]).tolist() == list(range(16, 33))


def test_m5_is_of_the_published_size_and_becomes_bits():
    assert round(sum(p.numel() for p in M5().parameters()), -5) in (500_000, 600_000)  # 0.5 M, table 1
    torch.manual_seed(0)
    sound = torch.randn(2, 1, 1200)
    model = M5(width=0.125, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    model(sound).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    bnn.models.trained_like(model.eval(), sound)
    packed = bnn.convert(model, sound)
    assert bnn.check_parity(model, packed, sound).first_difference is None


def test_data_of_ones_own_is_sounds_too():
    split = AudioSplit(torch.ones(4, 2, 5, dtype=torch.int16), torch.arange(4))
    data = AudioData("own", split, split, split, 4, 16000)
    assert data.blank().shape == (1, 2, 5)
    assert data.mean.shape == data.std.shape == (2,)
