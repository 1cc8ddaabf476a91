"""Distillation: losses against their formulas by hand, teachers that stay as they are and lie in no checkpoint."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from bnn.data import digits
from bnn.models import DigitsCNN
from bnn.quantizers import SteSign, XnorWeight
from bnn.training import (
    Classifier,
    DistillationLoss,
    RunError,
    Teacher,
    check_teacher,
    load_weights,
    read_checkpoint,
    train,
)
from bnn.training.distillation import Answers

SGD = partial(torch.optim.SGD, lr=0.05)
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
XNOR = {"weight_quantizer": XnorWeight, "input_quantizer": SteSign}


def network(seed=0, width=4, **quantizers):
    torch.manual_seed(seed)
    return DigitsCNN(width=width, **quantizers)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def by_hand(z, y, z_t, share, temperature, smoothing=0.0):
    target = np.eye(z.shape[1])[y] * (1 - smoothing) + smoothing / z.shape[1]
    hard = -(target * np.log(softmax(z))).sum(1).mean()
    p, q = softmax(z_t / temperature), softmax(z / temperature)
    return (1 - share) * hard + share * temperature**2 * (p * np.log(p / q)).sum(1).mean()


@pytest.mark.parametrize(
    "options",
    [
        {"share": 0.9, "temperature": 4.0},
        {"share": 1.0, "temperature": 1.0},
        {"share": 0.3, "temperature": 0.5, "label_smoothing": 0.1},
        {"share": 0.0},
    ],
)
def test_outputs_are_compared_by_the_formula(options):
    generator = torch.Generator().manual_seed(0)
    z, z_t = (3 * torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    y = torch.randint(0, 5, (7,), generator=generator)
    smoothing = options.get("label_smoothing", 0.0)
    expected = by_hand(z.numpy(), y.numpy(), z_t.numpy(), options["share"], options.get("temperature", 4.0), smoothing)
    assert float(DistillationLoss(**options)(z, y, Answers(z_t))) == pytest.approx(expected, rel=1e-5)


def test_attention_maps_are_compared_by_the_formula():
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(3, 4, 5, 6, generator=generator), torch.randn(3, 7, 5, 6, generator=generator)),
        (torch.randn(3, 2, 2, 2, generator=generator), torch.randn(3, 2, 2, 2, generator=generator)),
    ]
    expected = 0.0
    for student, teacher in pairs:
        for image in range(3):
            q_s, q_t = ((m[image].numpy() ** 2).sum(0).ravel() for m in (student, teacher))
            expected += np.linalg.norm(q_s / np.linalg.norm(q_s) - q_t / np.linalg.norm(q_t)) / 3
    loss = DistillationLoss(share=0.0, attention=2.5, maps=["a", "b"])
    z, y = torch.randn(3, 5), torch.tensor([0, 1, 2])
    found = loss(z, y, Answers(torch.zeros(3, 5), pairs)) - nn.functional.cross_entropy(z, y)
    assert float(found) == pytest.approx(2.5 * expected, rel=1e-4)
    same = DistillationLoss(share=0.0, attention=1.0, maps=["a"])(z, y, Answers(z, [(pairs[0][0], -3 * pairs[0][0])]))
    assert float(same) == pytest.approx(float(nn.functional.cross_entropy(z, y)))  # up to a scale and signs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 1.5}, "share must be between 0 and 1"),
        ({"temperature": 0}, "temperature must be positive"),
        ({"attention": -1.0}, "attention must be"),
        ({"attention": 1.0}, "belong together"),
        ({"maps": ["a"]}, "belong together"),
    ],
)
def test_bad_losses_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        DistillationLoss(**options)


def lesson(folder, student, teacher, epochs=2, optimizer=SGD, **options):
    classifier = partial(Classifier, optimizer=optimizer, loss=DistillationLoss(**options), teacher=teacher)
    return train(classifier, student, digits(), folder, epochs=epochs, batch_size=200, seed=0, trainer=QUIET, ema=0.5)


def test_a_teacher_stays_as_it_is_and_is_in_no_checkpoint(tmp_path):
    teacher = Teacher(network(1, width=6), "a" * 64)
    before = copy.deepcopy(teacher.network.state_dict())
    student = network(**XNOR)
    maps = {"conv2": "conv2", "conv3": "conv3"}
    lesson(tmp_path, student, teacher, attention=1.0, maps=maps)
    assert not any(module.training for module in teacher.network.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.network.parameters())
    assert not any(module._forward_hooks for net in (student, teacher.network) for module in net.modules())
    checkpoint = read_checkpoint(tmp_path)
    for key in ("state_dict", "current_model_state"):
        assert set(checkpoint[key]) == {f"network.{name}" for name in student.state_dict()}
    assert checkpoint["teacher_sha256"] == "a" * 64
    with pytest.raises((ValueError, RunError), match="another teacher"):
        lesson(tmp_path, network(**XNOR), Teacher(network(1, width=6), "b" * 64), 3, attention=1.0, maps=maps)


def divergence(student, teacher, images):
    with torch.no_grad():
        p, q = teacher(images).log_softmax(1), student.eval()(images).log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


def test_a_student_comes_to_answer_like_its_teacher(tmp_path):
    data = digits()
    images = data.normalizer()(data.test.images)
    teacher = Teacher(network(1), "")
    with torch.no_grad():
        teacher.network.linear5.weight.mul_(10)  # an opinion that is no one's label
    before = divergence(network(0), teacher.network, images)
    student = network(0)
    outcome = lesson(tmp_path, student, teacher, 6, partial(torch.optim.Adam, lr=0.02), share=1.0, temperature=1.0)
    assert divergence(student, teacher.network, images) < before / 2
    assert outcome.test_accuracy < 0.5  # and nothing was learned from labels


def test_gradients_reach_the_student_through_its_maps():
    student, teacher = network(0), Teacher(network(1), "")
    module = Classifier(student, SGD, loss=DistillationLoss(share=0.0, attention=1.0, maps=["conv2"]), teacher=teacher)
    module.on_fit_start()
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    logits = student(images)
    answers = module._lesson.answers(images)
    module._loss(logits.detach(), labels, answers).backward()
    module.on_fit_end()
    assert student.conv2.weight.grad.abs().sum() > 0
    assert student.conv3.weight.grad is None


@pytest.mark.parametrize(
    ("loss", "teacher", "words"),
    [
        (DistillationLoss(), None, "needs a teacher"),
        (nn.CrossEntropyLoss(), network(), "the loss does not ask it"),
        (DistillationLoss(), DigitsCNN(num_classes=12), "12 outputs and the network 10"),
        (DistillationLoss(attention=1.0, maps=["conv9"]), network(), "no module 'conv9'.*conv1"),
        (DistillationLoss(attention=1.0, maps={"conv2": "x"}), network(), "no module 'x'"),
        (DistillationLoss(attention=1.0, maps={"conv2": "linear5"}), network(), "of one height and width"),
    ],
)
def test_what_cannot_be_compared_is_named(loss, teacher, words):
    with pytest.raises(ValueError, match=words):
        check_teacher(loss, teacher and Teacher(teacher, ""), network().eval(), torch.zeros(1, 1, 8, 8))


def test_weights_come_from_checkpoints_and_state_dicts(tmp_path):
    from safetensors.torch import save_file

    net = network(3)
    state = net.state_dict()
    torch.save(state, tmp_path / "a.pt")
    torch.save({"state_dict": {f"network.{name}": value for name, value in state.items()}}, tmp_path / "b.ckpt")
    save_file(state, tmp_path / "c.safetensors")
    for name in ("a.pt", "b.ckpt", "c.safetensors"):
        loaded = load_weights(network(0), tmp_path / name)
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
        with pytest.raises(RunError, match="does not fit DigitsCNN"):
            load_weights(network(0, width=5), tmp_path / name)
    (tmp_path / "d.pt").write_bytes(b"text")
    (tmp_path / "e.safetensors").write_bytes(b"text")
    for name in ("d.pt", "e.safetensors", "none.pt"):
        with pytest.raises(RunError, match=r"no (file of )?weights"):
            load_weights(network(0), tmp_path / name)
