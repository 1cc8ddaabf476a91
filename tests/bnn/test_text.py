"""Text for language models: what is read, how it is cut into windows, and what each mistake is called."""

import hashlib

import pytest
import torch

from bnn.data import DataError, text, tinyshakespeare

text_module = __import__("sys").modules["bnn.data.text"]
WORDS = "Über den Wolken\r\nmuss die Freiheit wohl grenzenlos sein … 𐍈\n" * 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "song.txt"
    path.write_bytes(WORDS.encode())
    return path


def test_the_splits_are_the_text_in_its_order(file):
    data = text(str(file), context=8)
    parts = [data.decode(part) for part in (data.train, data.validation, data.test)]
    assert "".join(parts) == WORDS
    count = len(WORDS)
    tested = round(0.1 * count)
    assert [len(part) for part in parts] == [
        count - tested - round(0.05 * (count - tested)),
        round(0.05 * (count - tested)),
        tested,
    ]
    assert data.vocabulary == tuple(sorted(set(WORDS)))
    assert (data.name, data.kind, data.unit, data.input_shape) == ("song", "text", "character", (8,))
    assert data.num_classes == len(set(WORDS)) == len(data.classes)
    assert data.decode(data.encode("Freiheit …")) == "Freiheit …"
    with pytest.raises(DataError, match="song has no character '€'"):
        data.encode("Freiheit €")


def test_bytes_need_no_vocabulary(file):
    data = text(str(file), tokens="bytes", context=8, name="bytes")
    every = torch.cat([data.train, data.validation, data.test])
    assert bytes(every.tolist()) == WORDS.encode()
    assert (data.num_classes, data.classes, data.unit) == (256, (), "byte")
    assert data.decode(data.encode("Über")) == "Über"
    assert data.decode([0xC3]) == "\ufffd"


def test_more_than_256_characters(tmp_path):
    characters = "".join(chr(0x4E00 + i) for i in range(700))
    (tmp_path / "x").write_text(characters * 3, encoding="utf-8")
    data = text(str(tmp_path / "x"), context=4)
    assert data.num_classes == 700
    assert data.decode(data.train[:700]) == characters


def test_each_token_is_labelled_by_the_one_after_it(file):
    data = text(str(file), context=7)
    tokens = data.test.long()
    batches = list(data.batches("test", 5))
    inputs, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    assert inputs.dtype == labels.dtype == torch.int64
    assert inputs.shape == labels.shape == (data.count("test"), 7)
    used = 7 * len(inputs)
    assert torch.equal(inputs.flatten(), tokens[:used])
    assert torch.equal(labels.flatten(), tokens[1 : used + 1])
    assert len(tokens) - 1 - used < 7
    assert len(batches) == len(data.batches("test", 5)) == -(-len(inputs) // 5)


def test_epochs_are_cut_elsewhere_and_repeat_by_seed_and_epoch(file):
    data = text(str(file), context=16)

    def epoch(number, seed=0):
        loader = data.batches("train", 8, shuffle=True, seed=seed)
        loader.set_epoch(number)
        found = list(loader)
        assert len(found) == len(loader)
        return torch.cat([inputs for inputs, _ in found]), torch.cat([labels for _, labels in found])

    inputs, labels = epoch(3)
    assert len(inputs) == data.count("train")
    assert torch.equal(inputs[:, 1:], labels[:, :-1])
    again, _ = epoch(3)
    assert torch.equal(inputs, again)
    assert not torch.equal(inputs, epoch(4)[0])
    assert not torch.equal(inputs, epoch(3, seed=1)[0])
    # Whatever the start, the windows are all of one stretch of the text, each once.
    whole = data.decode(data.train)
    starts = set()
    for number in range(8):
        windows, _ = epoch(number)
        start = next(s for s in range(16) if data.decode(windows.flatten().sort().values) ==
                     data.decode(data.train[s : s + windows.numel()].sort().values)
                     and whole[s : s + 16] in map(data.decode, windows))  # fmt: skip
        stretch = whole[start : start + windows.numel()]
        assert sorted(map(data.decode, windows)) == sorted(stretch[i : i + 16] for i in range(0, len(stretch), 16))
        starts.add(start)
    assert len(starts) > 3


def test_tinyshakespeare_is_checked(tmp_path, monkeypatch):
    content = ("First Citizen:\nBefore we proceed any further, hear me speak.\n" * 30).encode()
    (tmp_path / "tinyshakespeare.txt").write_bytes(content)
    with pytest.raises(
        DataError, match=r"is damaged: its MD5 is .*Tiny Shakespeare's is 6fb458f1232090904fb40fe944165e91"
    ):
        tinyshakespeare(str(tmp_path))
    digest = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(text_module, "SHAKESPEARE", ("tinyshakespeare.txt", digest))
    data = tinyshakespeare(str(tmp_path), context=16)
    assert data.name == "tinyshakespeare"
    assert len(data.test) == round(0.1 * len(content))
    other = tmp_path / "input.txt"
    other.write_bytes(content)
    assert torch.equal(tinyshakespeare(file=str(other), context=16).train, data.train)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no tinyshakespeare.txt, nor have its subfolders tinyshakespeare;"):
        tinyshakespeare(str(tmp_path / "empty"))


def test_tinyshakespeare_is_fetched_by_the_name_that_it_has_there(tmp_path, monkeypatch):
    import pooch

    asked = []

    def retrieve(url, known, fname, path, progressbar):
        asked.append((url, known, fname))
        raise OSError("no network")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path)
    with pytest.raises(DataError, match=r"could not be downloaded .*put tinyshakespeare.txt into a folder"):
        tinyshakespeare()
    assert asked == [
        (
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            "md5:6fb458f1232090904fb40fe944165e91",
            "tinyshakespeare.txt",
        )
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file": None}, "needs data.file=FILE"),
        ({"file": "absent.txt"}, "absent.txt cannot be read: No such file"),
        ({"tokens": "words"}, "must be characters or bytes, got 'words'"),
        ({"context": 2000}, "fewer than the .* that data.context=2000 needs"),
        ({"context": 0}, "data.context must be a number of tokens of at least 1, got 0"),
        ({"test": 1.5}, "data.test must be a share between 0 and 1, got 1.5"),
        ({"validation": 0}, "data.validation must be a share between 0 and 1, got 0"),
    ],
)
def test_mistakes_are_named(file, options, message):
    with pytest.raises(DataError, match=message):
        text(**{"file": str(file), **options})


def test_what_text_has_not_is_named(tmp_path, file):
    (tmp_path / "latin").write_bytes("Über".encode("latin-1") * 100)
    with pytest.raises(DataError, match=r"is no UTF-8 \(invalid .* at byte 0\); give data.tokens=bytes"):
        text(str(tmp_path / "latin"))
    data = text(str(file), context=8)
    with pytest.raises(DataError, match="leave augment= out"):
        data.batches("train", 4, augment=lambda x: x)
    with pytest.raises(DataError, match="there is no pixels"):
        data.batches("train", 4, pixels=True)
