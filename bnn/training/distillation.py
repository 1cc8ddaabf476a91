"""Distillation: losses that compare a network with a teacher, a frozen network that has learned before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Answers:
    """What a teacher says of a batch: its logits (N, classes), and pairs (student's map, teacher's map) of features."""

    logits: Tensor
    maps: Sequence[tuple[Tensor, Tensor]] = ()


class DistillationLoss(nn.Module):
    """The loss of a network that learns from labels and from a teacher's outputs and attention maps.

    (1 - share) CE(z, y) + share T^2 KL(softmax(z_t / T) || softmax(z / T)) + attention sum_s A_s, means over the batch.
    share: lambda of Hinton et al. 2015 (arXiv:1503.02531, section 2); with share=1 and temperature=1 the teacher's
    distribution alone, as in ReActNet (Liu et al. 2020, arXiv:2003.03488, section 4.4).
    A_s = ||Q_s / ||Q_s|| - Q_t / ||Q_t||||_2 with Q the sum over channels of a map's squares, of each image by itself
    (Martinez et al. 2020, "Real-to-Binary", arXiv:2003.11535, section 4.2). maps: dotted paths of the modules whose
    outputs (N, C, H, W) are compared, a list or {path in the student: path in the teacher}; their heights and widths
    must agree, their channels need not.
    A call takes logits (N, classes), labels int64 (N,) and the teacher's Answers. ValueError for numbers out of range.
    """

    def __init__(
        self,
        share: float = 0.9,
        temperature: float = 4.0,
        attention: float = 0.0,
        maps: Sequence[str] | Mapping[str, str] = (),
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {share!r}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        if not 0 <= attention < float("inf"):
            raise ValueError(f"attention must be a number of at least 0, got {attention!r}")
        if (attention > 0) != (len(maps) > 0):
            raise ValueError(
                "attention and maps belong together: a weight above 0, and the dotted paths of the modules whose "
                f"outputs are compared; got attention={attention!r} and maps={list(maps)}"
            )
        self.share, self.temperature, self.attention = share, temperature, attention
        self.maps = dict(maps) if isinstance(maps, Mapping) else {name: name for name in maps}
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor, answers: Answers | None = None) -> Tensor:
        if answers is None:
            raise ValueError("a loss of distillation needs a teacher: give teacher.run=FOLDER or teacher.model")
        logits = logits.float()
        total = logits.new_zeros(())
        if self.share < 1:
            hard = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
            total = total + (1 - self.share) * hard
        if self.share > 0:
            ours = F.log_softmax(logits / self.temperature, 1)
            theirs = F.log_softmax(answers.logits.float() / self.temperature, 1)
            soft = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
            total = total + self.share * self.temperature**2 * soft
        for student, teacher in answers.maps:
            total = total + self.attention * attention_distance(student, teacher)
        return total

    def extra_repr(self) -> str:
        return f"share={self.share}, temperature={self.temperature}, attention={self.attention}"


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over images of the distance of two maps (N, C, H, W), A_s of DistillationLoss."""
    return (_attention(student) - _attention(teacher)).norm(dim=1).mean()


def _attention(features: Tensor) -> Tensor:
    return F.normalize(features.float().square().sum(1).flatten(1), dim=1)


class Teacher:
    """A frozen network whose answers another one learns from.

    network: of (N, ...) -> (N, classes); set to evaluation mode, its parameters to need no gradient. sha256: of the
    file that its weights come from, by which a run that goes on knows it again. A Lightning module that holds it does
    not count it among its own modules: its weights are in no checkpoint and in no average.
    """

    def __init__(self, network: nn.Module, sha256: str):
        self.network = network.eval().requires_grad_(False)
        self.sha256 = sha256

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teacher":
        return self  # it does not change

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the outputs for a batch."""
        return self.network(images)


class FeatureMaps:
    """Collects what modules of a network return, {path: output}, from its making until `remove`.

    ValueError, with the paths that there are, for one that the network has not.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str]):
        self.found: dict[str, Tensor] = {}
        modules = dict(network.named_modules())
        for path in paths:
            if path not in modules:
                known = ", ".join(name for name in modules if name)
                raise ValueError(f"{type(network).__name__} has no module {path!r} for loss.maps; it has {known}")
        self._hooks = [modules[path].register_forward_hook(self._keep(path)) for path in paths]

    def _keep(self, path: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            self.found[path] = output

        return hook

    def remove(self) -> None:
        """End the collection."""
        for hook in self._hooks:
            hook.remove()
        self.found = {}


class Lesson:
    """A teacher at work on a student: answers batch by batch, with the maps that the loss compares.

    maps: {path in the student: path in the teacher}. The student's maps are those of its last forward pass.
    """

    def __init__(self, teacher: Teacher, student: nn.Module, maps: Mapping[str, str], device: torch.device | str):
        self._teacher = teacher
        teacher.network.to(device)
        self._student_maps = FeatureMaps(student, list(maps))
        try:
            self._teacher_maps = FeatureMaps(teacher.network, list(maps.values()))
        except ValueError:
            self._student_maps.remove()
            raise
        self._maps = maps

    def answers(self, images: Tensor) -> Answers:
        """Return the teacher's answers; ValueError for maps that cannot be compared."""
        logits = self._teacher.logits(images)
        pairs = [
            (self._student_maps.found[ours], self._teacher_maps.found[theirs]) for ours, theirs in self._maps.items()
        ]
        for (ours, theirs), (path, other) in zip(pairs, self._maps.items(), strict=True):
            if ours.ndim != 4 or theirs.ndim != 4 or ours.shape[2:] != theirs.shape[2:]:
                raise ValueError(
                    f"loss.maps compares maps (N, C, H, W) of one height and width: {path} of the student returns "
                    f"{tuple(ours.shape)}, {other} of the teacher {tuple(theirs.shape)}"
                )
        return Answers(logits.flatten(0, -2), pairs)  # every position of a sequence is an example

    def end(self) -> None:
        """Remove what collects the maps."""
        self._student_maps.remove()
        self._teacher_maps.remove()


def check_teacher(loss: Any, teacher: Teacher | None, student: nn.Module, example: Tensor) -> None:
    """ValueError, saying what to do, unless a loss and a teacher go together and the teacher's answers fit.

    example: a batch that both networks take; the student is in evaluation mode.
    """
    if not isinstance(loss, DistillationLoss):
        if teacher is not None:
            raise ValueError("a teacher is given, but the loss does not ask it: use loss=distillation, kl or attention")
        return
    if teacher is None:
        raise ValueError("a loss of distillation needs a teacher: give teacher.run=FOLDER or teacher.model")
    lesson = Lesson(teacher, student, loss.maps, example.device)
    try:
        with torch.no_grad():
            ours = student(example)
        theirs = lesson.answers(example).logits
    finally:
        lesson.end()
    if ours.shape[-1] != theirs.shape[-1]:
        raise ValueError(
            f"the teacher has {theirs.shape[-1]} outputs and the network {ours.shape[-1]}: they need the same classes"
        )
