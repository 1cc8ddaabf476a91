"""A classifier as a Lightning module: loss, accuracy, latent weights kept in bounds after each step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from bnn.data import Loader
from bnn.latent import center_latent_weights, clip_latent_weights, weight_now
from bnn.layers.base import QuantLayer
from bnn.memory import ActivationPacking, pack_activations
from bnn.optimizers import parameter_groups, scale_rates
from bnn.training.distillation import Answers, DistillationLoss, Lesson, Teacher
from bnn.training.divergence import DivergenceError, where_not_finite
from bnn.training.processes import anywhere, gathered, seed_of, summed, take_buffers_of_the_first

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]

# Keys in a checkpoint: states of PyTorch's generators, those of the first process and of the others in order.
_RANDOM_NUMBERS, _OF_OTHERS = "random_numbers", "random_numbers_of_others"
_TEACHER = "teacher_sha256"  # key in a checkpoint


class Classifier(LightningModule):
    """Trains a network of (N, ...) -> (N, classes) on batches (inputs, labels).

    Labels are (N,); or (N, T), one for each position, as the next tokens are of which a language model (N, T) ->
    (N, T, classes) learns: each position is then an example of its own for loss and accuracy.

    optimizer, scheduler: factories, of parameter groups by role (bnn.optimizers.parameter_groups) and of the
    optimizer; the scheduler steps once an epoch. latent_clip: bound of latent weights after each step, or None.
    center_latents: subtract their mean over input channels after each step, as the XNOR-Net authors' code does.
    no_decay: roles of parameters that weight decay spares. glorot_rates: learning rates of latents by BinaryNet's rule;
    step_rates: those of LSQ's steps by their levels (bnn.optimizers.parameter_groups).
    pack_activations: less memory for more time, the same gradients (bnn.memory).
    loss: of logits (N, classes) and labels (N,), cross-entropy by default. mixup: alpha of Beta(alpha, alpha), by which
    pairs of images are mixed and their losses weighed (Zhang et al. 2018, arXiv:1710.09412, section 2; one weight a
    batch, as in the authors' code); 0 mixes none. The accuracy of training then counts the label of the larger share.
    compile: torch.compile the forward pass of training, True or the name of one of its backends. Evaluation is not
    compiled, nor are the steps that a Doctor watches.
    channels_last: train with images, maps and weights of convolutions in the memory layout NHWC, which is often faster
    on a CPU; sums may round otherwise.
    Of a step over several batches (trainer.accumulate_grad_batches) the gradient is that of the mean over all their
    images, of fewer at the end of an epoch too; batch norm sees each batch by itself.
    teacher: whom a DistillationLoss asks; that of a run that goes on must be the same.
    DivergenceError when the loss is not finite: on the CPU at that step, and it names the layer; elsewhere, where
    looking at each loss would make the device wait, and beside a scaler of gradients (16-mixed), which skips such
    steps, at the end of an epoch whose last loss is not finite.
    Processes that train together (Lightning's DDP) each see their share of a batch, and a step has the gradient of the
    mean over all its images; losses, accuracies and bits are those of all processes. Batch norm sees each share by
    itself, and what is evaluated and kept are the statistics, and all other buffers, of the first process. Processes
    draw numbers of their own, all from one seed.
    Logs `train_loss`, `train_accuracy`, `validation_accuracy`, `test_accuracy` in [0, 1]; where each position has a
    label also `validation_bits` and `test_bits`, the mean of -log2 of the probability of the label: bits a token.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        latent_clip: float | None = None,
        center_latents: bool = False,
        no_decay: Sequence[str] = ("latent",),
        glorot_rates: bool = False,
        step_rates: bool = False,
        pack_activations: bool = False,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        mixup: float = 0.0,
        compile: bool | str = False,
        channels_last: bool = False,
        teacher: Teacher | None = None,
    ):
        super().__init__()
        if latent_clip is not None and not latent_clip > 0:
            raise ValueError(f"latent_clip must be positive or None, got {latent_clip!r}")
        if not 0 <= mixup < float("inf"):
            raise ValueError(f"mixup must be a number of at least 0, got {mixup!r}")
        if compile and pack_activations:
            raise ValueError("compile and pack_activations cannot go together: a compiled network keeps what it likes")
        self.network = network
        if teacher is not None and not isinstance(loss, DistillationLoss):
            raise ValueError("a teacher is given, but the loss does not ask it: use a DistillationLoss")
        if compile and isinstance(loss, DistillationLoss) and loss.maps:
            raise ValueError("compile and attention maps cannot go together: compiled code does not hand them out")
        self._teacher = teacher
        self._lesson: Lesson | None = None
        self._compile = compile
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._channels_last = channels_last
        self._loss: Callable[..., Tensor] = nn.CrossEntropyLoss() if loss is None else loss
        self._mixup = mixup
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._latent_clip = latent_clip
        self._sums, self._measured = self._zeros(), self._zeros()
        self._loader: Any = None
        self._processes = 1
        self._steps, self._finite_steps = 0, torch.zeros((), dtype=torch.int64)
        self._center_latents = center_latents
        self._no_decay = no_decay
        self._scaled_rates = {"glorot_rates": glorot_rates, "step_rates": step_rates}
        self._packs = pack_activations
        self._packing: ActivationPacking | None = None
        self._random_numbers: dict[str, Tensor] = {}
        self._first_batch, self._images = 1, 0  # of the step that is accumulated
        self._batches_a_step = 1
        self._looks_at_losses = self._gives_bits = False

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(parameter_groups(self.network, self._no_decay, **self._scaled_rates))
        scale_rates(optimizer)
        clips = self._latent_clip is not None and self._latent_clip < 1
        if getattr(optimizer, "latent_free", False) and (self._center_latents or clips):
            raise ValueError(
                f"{type(optimizer).__name__} keeps binary weights without latents: center_latents=true or a "
                "latent_clip below 1 would move them off -1 and +1"
            )
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._scheduler(optimizer)}

    def on_fit_start(self) -> None:
        if self._channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._packing = pack_activations(self.network) if self._packs else None
        if self._teacher is not None and isinstance(self._loss, DistillationLoss):
            self._lesson = Lesson(self._teacher, self.network, self._loss.maps, self.device)
        if self._compile:
            backend = self._compile if isinstance(self._compile, str) else "inductor"
            self._compiled = torch.compile(self.network.forward, backend=backend)

    def on_fit_end(self) -> None:
        self._compiled = None
        if self._channels_last:
            self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if self._lesson is not None:
            self._lesson.end()
        if self._packing is not None:
            self._packing.remove()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # So that a run that goes on draws what it would have drawn: stochastic signs, dropout.
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint[_RANDOM_NUMBERS], *others = gathered(states)
        if others:
            checkpoint[_OF_OTHERS] = others
        if self._teacher is not None:
            checkpoint[_TEACHER] = self._teacher.sha256

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ranks = [checkpoint.get(_RANDOM_NUMBERS, {}), *checkpoint.get(_OF_OTHERS, [])]
        self._random_numbers = ranks[self.global_rank] if self.global_rank < len(ranks) else {}
        if self._teacher is not None and checkpoint.get(_TEACHER) != self._teacher.sha256:
            raise ValueError(
                f"the run began with another teacher (SHA-256 {checkpoint.get(_TEACHER)}, now {self._teacher.sha256}): "
                "give it back, or choose another run_dir"
            )

    def _restore_random_numbers(self) -> None:
        states, self._random_numbers = self._random_numbers, {}
        if "cpu" in states:
            torch.set_rng_state(states["cpu"].cpu())
        if "cuda" in states and self.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"].cpu(), self.device)

    def on_train_epoch_start(self) -> None:
        # The order of the batches follows the epoch, so an interrupted run goes on with the batches it would have had.
        loader: Any = self.trainer.train_dataloader
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(self.current_epoch)
        self._loader, self._processes = loader, self.trainer.world_size
        self._steps, self._finite_steps = 0, torch.zeros((), dtype=torch.int64, device=self.device)
        for module in self.network.modules():
            if isinstance(module, QuantLayer):
                module.weight_quantizer.begin_epoch(module.filters(weight_now(module).detach()))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        own, together = self._counts(self._loader, index, len(images))
        if self._mixup > 0:
            logits, loss, labels = self._mixed(images, labels)
        else:
            logits, labels = _examples(self._logits(images), labels)
            loss = self._loss(logits, labels, *self._answers(images))
        if self._looks_at_losses and anywhere(not math.isfinite(float(loss.detach()))):
            found = gathered(where_not_finite(self.network, images))
            where = next((layer for layer in found if layer != "the loss"), "the loss")
            raise self._diverged(f"at epoch {self.current_epoch}, step {index} (both from 0); it begins in {where}")
        # Lightning's log() costs more than a step of a small network; sums of the epoch stay on the device.
        count = len(labels) if own else 0
        right = (logits.detach().argmax(1) == labels).sum()
        self._sums += torch.stack([loss.detach() * count, right if own else right * 0, _number(count, labels)])
        self._finite_steps = torch.where(loss.detach().isfinite(), index + 1, self._finite_steps)
        self._steps = index + 1
        return self._weighed(loss, own, together, index)

    def _counts(self, loader: Any, batch: int, here: int) -> tuple[int, int]:
        """Return the examples of a batch that count: those of this process, and those of all."""
        return loader.counts(batch) if isinstance(loader, Loader) else (here, here * self._processes)

    @staticmethod
    def _diverged(where: str) -> DivergenceError:
        return DivergenceError(
            f"the loss is not finite {where}: try a lower learning rate (optimizer.lr), a warm-up "
            "(scheduler=warmup_cosine) or trainer.gradient_clip_val=1.0; +trainer.detect_anomaly=true finds the "
            "operation, and doctor.json what the layers looked like"
        )

    def _logits(self, images: Tensor) -> Tensor:
        """Return the outputs in training."""
        if self._channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        if self._compiled is None or any(module._forward_hooks for module in self.network.modules()):
            return self.network(images)  # compiled code would skip the hooks of a Doctor
        return self._compiled(images)

    def _answers(self, images: Tensor) -> tuple[Answers, ...]:
        """Return what a loss takes beside logits and labels, after the network's forward pass."""
        return () if self._lesson is None else (self._lesson.answers(images),)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._batches_a_step = self.trainer.accumulate_grad_batches  # callbacks may change it

    def _weighed(self, loss: Tensor, own: int, together: int, index: int) -> Tensor:
        """Return the loss of a batch, weighed by its images against the first batch of its step.

        Gradients are averaged over processes, each as if it had as many images as the others.
        """
        if index % self._batches_a_step == 0:
            self._first_batch, self._images = together, 0
        self._images += together
        weight = own * self._processes / self._first_batch
        return loss if weight == 1 else loss * weight

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Lightning divides by accumulate_grad_batches, also where an epoch ends before so many.
        expected = self._first_batch * self._batches_a_step
        if self._images != expected:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(gradients, expected / self._images)

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits and loss of mixed images, and the labels of their larger shares.

        What is drawn comes from the CPU's generator, whose state is in every checkpoint.
        """
        alpha = torch.tensor(float(self._mixup))
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        others = torch.randperm(len(labels)).to(labels.device)
        if not images.is_floating_point():
            raise ValueError("mixup mixes floats, images or sounds; of tokens there is no mean: use classifier.mixup=0")
        mixed = share * images + (1 - share) * images[others]
        logits = self._logits(mixed)
        answers = self._answers(mixed)
        losses = self._loss(logits, labels, *answers), self._loss(logits, labels[others], *answers)
        loss = share * losses[0] + (1 - share) * losses[1]
        return logits, loss, labels if share >= 0.5 else labels[others]

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        self._keep_latents()

    def on_train_epoch_end(self) -> None:
        finite = min(gathered(int(self._finite_steps)))
        if finite < self._steps:
            raise self._diverged(f"from epoch {self.current_epoch}, step {finite} of {self._steps} on (both from 0)")
        loss, right, seen = summed(self._sums).tolist()
        self._report("train_loss", loss / seen)
        self._report("train_accuracy", right / seen, prog_bar=True)
        self._sums = self._zeros()

    def _report(self, name: str, value: float, prog_bar: bool = False) -> None:
        """Log a number of an epoch that all processes know; the largest of equal ones, for a mean would round."""
        self.log(name, value, prog_bar=prog_bar, on_epoch=True, reduce_fx="max", sync_dist=True)

    def on_train_start(self) -> None:
        self._looks_at_losses = self.device.type == "cpu" and self.trainer.scaler is None
        self._sums = self._zeros()
        # Not when a run goes on: centring what was clipped would move it again.
        if self.global_step == 0:
            self._keep_latents()
        if self.global_rank > 0:
            torch.manual_seed(seed_of(torch.initial_seed(), self.global_rank))
        self._restore_random_numbers()

    def on_validation_epoch_start(self) -> None:
        self._begin_evaluation()

    def on_test_epoch_start(self) -> None:
        self._begin_evaluation()

    def _begin_evaluation(self) -> None:
        take_buffers_of_the_first(self.network)
        self._measured, self._processes = self._zeros(), self.trainer.world_size
        self._gives_bits = False

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate(batch, index, self.trainer.val_dataloaders)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate(batch, index, self.trainer.test_dataloaders)

    def _evaluate(self, batch: tuple[Tensor, Tensor], index: int, loader: Any) -> None:
        images, given = batch
        self._gives_bits = given.ndim > 1
        if self._counts(loader, index, len(images))[0] == 0:
            return
        logits, labels = _examples(self.network(images), given)
        right, bits = (logits.argmax(1) == labels).sum(), _number(0, labels)
        if self._gives_bits:
            bits = F.cross_entropy(logits.float(), labels) / math.log(2) * len(labels)
        self._measured += torch.stack([right, bits, _number(len(labels), labels)])

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation("validation")

    def on_test_epoch_end(self) -> None:
        self._end_evaluation("test")

    def _end_evaluation(self, split: str) -> None:
        right, bits, seen = summed(self._measured).tolist()
        self._report(f"{split}_accuracy", right / seen, prog_bar=True)
        if self._gives_bits:
            self._report(f"{split}_bits", bits / seen, prog_bar=True)

    def _keep_latents(self) -> None:
        if self._center_latents:
            center_latent_weights(self.network)
        if self._latent_clip is not None:
            clip_latent_weights(self.network, self._latent_clip)

    def _zeros(self) -> Tensor:
        return torch.zeros(3, dtype=torch.float64, device=self.device)


def _examples(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (M, classes) and labels (M,) of images, or of all positions of sequences."""
    return (logits, labels) if labels.ndim == 1 else (logits.flatten(0, -2), labels.flatten())


def _number(value: float, like: Tensor) -> Tensor:
    return torch.tensor(float(value), device=like.device)
