"""What training asks of a data set, whatever it holds: images, sounds or text."""

from collections.abc import Callable
from typing import Literal, Protocol

from torch import Tensor

from bnn.data.batches import Loader

Kind = Literal["images", "audio", "text"]
SplitName = Literal["train", "validation", "test"]


class TrainingData(Protocol):
    """Three fixed splits of examples; ImageData, AudioData, TextData and ImageFiles are such.

    name: what results call it. kind: what it holds. num_classes: of the labels; classes: their names, or none.
    evaluation_batch: examples in a batch that measures.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def evaluation_batch(self) -> int: ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, batch left out."""
        ...

    def count(self, split: SplitName) -> int:
        """Return the number of examples of a split."""
        ...

    def blank(self) -> Tensor:
        """Return a batch (1, *input_shape) of zeros as a network takes it."""
        ...

    def batches(
        self,
        split: SplitName,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        augment: Callable[[Tensor], Tensor] | None = None,
        pixels: bool = False,
    ) -> Loader:
        """Return batches (inputs, labels) of a split, in an order and with changes that (seed, epoch) decide.

        augment: changes the inputs of a batch, or None. pixels: whether the network takes pixels as they are, floats
        of whole numbers. Labels are int64 (B,), or (B, T) where each of T positions has one.
        """
        ...
