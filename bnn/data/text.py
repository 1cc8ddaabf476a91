"""Text for language models: a file as characters or bytes, cut into windows of which each token predicts the next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bnn.data.batches import Loader
from bnn.data.errors import DataError
from bnn.data.files import checked_file
from bnn.data.training_data import Kind, SplitName

Unit = Literal["characters", "bytes"]

BYTES = 256
SHAKESPEARE = ("tinyshakespeare.txt", "6fb458f1232090904fb40fe944165e91")
_MIRRORS = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",)
_REMOTE = "input.txt"


class Windows(Loader):
    """Batches (tokens, next tokens), both int64 (B, T): each token's label is the token after it.

    Windows lie one after the other and do not overlap; what is left at the end is not seen. With `shuffle` an epoch
    begins at one of the first T tokens, which (seed, epoch) decides, so that windows are cut elsewhere each time.
    """

    def __init__(self, tokens: Tensor, length: int, batch_size: int, shuffle: bool = False, seed: int = 0):
        spare = length - 1 if shuffle else 0
        super().__init__((len(tokens) - 1 - spare) // length, batch_size, shuffle, seed)
        self._tokens = tokens
        self._length = length

    def to(self, device: torch.device | str) -> "Windows":
        """Move the tokens to a device; returns self."""
        self._tokens = self._tokens.to(device)
        return self

    def _batch(self, index: Tensor, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        start = 0
        if self._shuffle:
            start = int(np.random.default_rng((self._seed % 2**64, epoch)).integers(self._length))
        within = torch.arange(self._length + 1, device=self._tokens.device)
        places = start + index.to(self._tokens.device)[:, None] * self._length + within
        found = self._tokens[places].long()
        return found[:, :-1], found[:, 1:]


@dataclass(frozen=True)
class TextData:
    """A text with fixed splits: 1-d tensors of tokens in the order of the text.

    vocabulary: the character of each token, or none if tokens are bytes. context: tokens that a network sees at once.
    The class of a position is the token after it.
    """

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    context: int
    vocabulary: tuple[str, ...] = ()

    kind: ClassVar[Kind] = "text"
    evaluation_batch: ClassVar[int] = 64

    def __post_init__(self) -> None:
        if isinstance(self.context, bool) or not isinstance(self.context, int) or self.context < 1:
            raise DataError(f"data.context must be a number of tokens of at least 1, got {self.context!r}")
        for split, least in (("train", 2 * self.context), ("validation", self.context + 1), ("test", self.context + 1)):
            if len(getattr(self, split)) < least:
                raise DataError(
                    f"{self.name} has {len(getattr(self, split)):,} {self.unit}s for {split}, fewer than the {least:,} "
                    f"that data.context={self.context} needs: give a smaller context or a longer text"
                )

    @property
    def unit(self) -> str:
        """What a token is: "character" or "byte"."""
        return "character" if self.vocabulary else "byte"

    @property
    def num_classes(self) -> int:
        """Number of different tokens."""
        return len(self.vocabulary) or BYTES

    @property
    def classes(self) -> tuple[str, ...]:
        """The character of each token, or none of bytes."""
        return self.vocabulary

    @property
    def input_shape(self) -> tuple[int]:
        """(context,)."""
        return (self.context,)

    def count(self, split: SplitName) -> int:
        """Return the number of windows of a split that do not overlap; of "train" those that an epoch sees."""
        return (len(getattr(self, split)) - (self.context if split == "train" else 1)) // self.context

    def blank(self) -> Tensor:
        """Return a window of the first token, int64 (1, context)."""
        return torch.zeros(1, self.context, dtype=torch.int64)

    def batches(
        self,
        split: SplitName,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        augment: Callable[[Tensor], Tensor] | None = None,
        pixels: bool = False,
    ) -> Windows:
        """Return batches of windows; see `TrainingData`. DataError if tokens should be augmented or be pixels."""
        if augment is not None or pixels:
            what = "pixels" if pixels else "augmentation: leave augment= out"
            raise DataError(f"{self.name} is text, for which there is no {what}")
        return Windows(getattr(self, split), self.context, batch_size, shuffle, seed)

    def encode(self, text: str) -> Tensor:
        """Return the tokens of a text, int64 (T,); DataError names a character that is not in the vocabulary."""
        if not self.vocabulary:
            return torch.tensor(list(text.encode()), dtype=torch.int64)
        places = {character: token for token, character in enumerate(self.vocabulary)}
        strange = sorted(set(text) - set(places))
        if strange:
            raise DataError(f"{self.name} has no character {strange[0]!r}; it has {''.join(self.vocabulary)!r}")
        return torch.tensor([places[character] for character in text], dtype=torch.int64)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """Return the text of tokens; bytes that are no UTF-8 become the replacement character."""
        numbers = [int(token) for token in tokens]
        if not self.vocabulary:
            return bytes(numbers).decode(errors="replace")
        return "".join(self.vocabulary[number] for number in numbers)


def text(
    file: str | None = None,
    tokens: Unit = "characters",
    context: int = 256,
    validation: float = 0.05,
    test: float = 0.1,
    name: str | None = None,
) -> TextData:
    """Return a text file for a language model.

    tokens: "characters" (of UTF-8; the vocabulary is those of the whole file, in the order of their code points) or
    "bytes" (of any file). context: tokens that the network sees at once. test: the share at the end of the text that
    is for the test; validation: the share at the end of the rest. name: what results call the data, the file's by
    default. DataError says what cannot be used.
    """
    if not file:
        raise DataError("data=text needs data.file=FILE, the text to learn")
    path = Path(file).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"data.file={file} cannot be read: {error.strerror or error}") from error
    return _text(content, path, name or path.stem, tokens, context, validation, test)


def tinyshakespeare(
    root: str | None = None,
    file: str | None = None,
    download: bool = True,
    tokens: Unit = "characters",
    context: int = 256,
    validation: float = 0.05,
) -> TextData:
    """Return the 1,115,394 characters of Shakespeare that char-rnn and nanoGPT learn, of 65 kinds; the last 10 % test.

    validation: the share at the end of the first 90 %. root: a folder that has tinyshakespeare.txt (or a subfolder
    `tinyshakespeare` that has it), file: the file itself; without them it is downloaded once into the user's cache (not
    if download is False). It is checked by its MD5. Source: github.com/karpathy/char-rnn. DataError says what is
    missing or damaged and what to do.
    """
    name, md5 = SHAKESPEARE
    if file is not None:
        given = Path(file).expanduser()
        root, name = str(given.parent), given.name
    path = checked_file("Tiny Shakespeare", name, md5, _MIRRORS, ("tinyshakespeare",), root, download, remote=_REMOTE)
    return _text(path.read_bytes(), path, "tinyshakespeare", tokens, context, validation, 0.1)


def _text(content: bytes, path: Path, name: str, tokens: str, context: int, validation: float, test: float) -> TextData:
    for option, share in (("validation", validation), ("test", test)):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise DataError(f"data.{option} must be a share between 0 and 1, got {share!r}")
    vocabulary: tuple[str, ...] = ()
    numbers: np.ndarray
    if tokens == "bytes":
        numbers = np.frombuffer(content, np.uint8)
    elif tokens == "characters":
        try:
            points = np.frombuffer(content.decode("utf-8").encode("utf-32-le"), np.uint32)
        except UnicodeDecodeError as error:
            where = f"{error.reason} at byte {error.start}"
            raise DataError(f"{path} is no UTF-8 ({where}); give data.tokens=bytes") from error
        found, numbers = np.unique(points, return_inverse=True)
        vocabulary = tuple(map(chr, found))
        numbers = numbers.astype(np.uint8 if len(found) <= BYTES else np.int32)
    else:
        raise DataError(f"data.tokens must be characters or bytes, got {tokens!r}")
    every = torch.from_numpy(numbers.copy())
    tested = len(every) - round(test * len(every))
    validated = tested - round(validation * tested)
    return TextData(name, every[:validated], every[validated:tested], every[tested:], context, vocabulary)
