"""Losses, mixup and the augmentations beside crops: against formulas, loops and SciPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import nn

from bnn.data import Cutout, InTurn, RandomCropFlip, RandomResizedCrop
from bnn.training import Classifier, SquaredHingeLoss


def test_the_squared_hinge_loss_is_the_papers():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(0, 2, (7, 5)), generator.integers(0, 5, 7)
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        for k, y in enumerate(row):
            total += max(0.0, 1.0 - (1 if k == label else -1) * y) ** 2
    found = SquaredHingeLoss()(torch.from_numpy(logits), torch.from_numpy(labels))
    assert float(found) == pytest.approx(total / 35, rel=1e-12)
    x = torch.from_numpy(logits).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: SquaredHingeLoss(0.5)(y, torch.from_numpy(labels)), x)
    with pytest.raises(ValueError, match="margin"):
        SquaredHingeLoss(0)


def step(classifier, seed=0):
    torch.manual_seed(seed)
    images, labels = torch.randn(8, 4), torch.arange(8) % 3
    torch.manual_seed(seed)
    return classifier.training_step((images, labels), 0), images, labels


def test_a_classifier_trains_by_the_loss_it_is_given():
    torch.manual_seed(1)
    network = nn.Linear(4, 3)
    for loss in (None, nn.CrossEntropyLoss(label_smoothing=0.1), SquaredHingeLoss()):
        found, images, labels = step(Classifier(network, torch.optim.SGD, loss=loss))
        assert torch.equal(found, (loss or nn.CrossEntropyLoss())(network(images), labels))


def test_mixup_of_a_linear_network_mixes_its_outputs():
    torch.manual_seed(1)
    network = nn.Linear(4, 3)
    classifier = Classifier(network, torch.optim.SGD, mixup=0.4)
    found, images, labels = step(classifier, 5)
    torch.manual_seed(5)
    share = float(torch.distributions.Beta(torch.tensor(0.4), torch.tensor(0.4)).sample())
    others = torch.randperm(8)
    outputs = share * network(images) + (1 - share) * network(images)[others]
    targets = share * torch.eye(3)[labels] + (1 - share) * torch.eye(3)[labels[others]]
    expected = -(targets * outputs.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found, expected)
    assert torch.equal(found, step(classifier, 5)[0])
    assert not torch.equal(found, step(classifier, 6)[0])
    with pytest.raises(ValueError, match="mixup"):
        Classifier(network, torch.optim.SGD, mixup=-1)


def test_a_square_is_cut_out_anywhere():
    torch.manual_seed(0)
    images = torch.ones(600, 2, 6, 7)
    seen = set()
    for image in Cutout(3, value=-1.0)(images):
        assert torch.equal(image[0], image[1])
        rows, columns = np.nonzero(image[0].numpy() == -1)
        assert ((image == -1) | (image == 1)).all()
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width  # a whole rectangle
        assert 2 <= height <= 3
        assert 2 <= width <= 3
        seen.add((int(rows.min()), int(columns.min()), int(height), int(width)))
    centres = {(row + height - 2 if row == 0 else row + 1, column + width - 2 if column == 0 else column + 1)
               for row, column, height, width in seen}  # fmt: skip
    assert len(centres) == 6 * 7  # every pixel is a centre
    assert (images == 1).all()
    with pytest.raises(ValueError, match="size"):
        Cutout(0)


def test_a_crop_is_a_part_of_the_image():
    """The image holds its own coordinates, so the result says which part was taken; SciPy interpolates it too."""
    torch.manual_seed(0)
    height, width, count = 12, 20, 400
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    noise = torch.rand(height, width)
    images = torch.stack([y, x, noise]).expand(count, 3, height, width)
    out = RandomResizedCrop((0.2, 0.6), (0.5, 2.0), 0.5)(images)
    assert out.shape == images.shape
    middle = out[:, :, height // 2 - 1 : height // 2 + 1, width // 2 - 1 : width // 2 + 1]
    down = (middle[:, 0, 1, 0] - middle[:, 0, 0, 0]) * height  # rows of the part
    across = (middle[:, 1, 0, 1] - middle[:, 1, 0, 0]) * width
    assert 0.4 < (across < 0).float().mean() < 0.6  # mirrored
    area, ratio = down * across.abs() / (height * width), across.abs() / down
    free = (down < height - 1e-3) & (across.abs() < width - 1e-3)  # made to fit otherwise
    assert free.float().mean() > 0.5
    assert area[free].min() > 0.2 - 1e-4
    assert area[free].max() < 0.6 + 1e-4
    assert ratio[free].min() > 0.5 - 1e-4
    assert ratio[free].max() < 2.0 + 1e-4
    assert ratio.min() < 0.8 < 1.25 < ratio.max()
    one = out[0].numpy()
    expected = map_coordinates(noise.numpy(), one[:2], order=1, mode="nearest")
    inside = (one[0] > 0) & (one[0] < height - 1) & (one[1] > 0) & (one[1] < width - 1)
    np.testing.assert_allclose(one[2][inside], expected[inside], atol=1e-4)
    whole = RandomResizedCrop((1.0, 1.0), (1.0, 1.0), 0.0)(images[:1, :, :, :12])
    torch.testing.assert_close(whole, images[:1, :, :, :12])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": (0, 1)}, "scale"),
        ({"scale": (0.5, 0.2)}, "scale"),
        ({"ratio": (2, 1)}, "ratio"),
        ({"flip": 2}, "flip"),
    ],
)
def test_bad_crops_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RandomResizedCrop(**options)


def test_changes_run_in_turn():
    images = torch.rand(5, 3, 8, 8)
    torch.manual_seed(3)
    found = InTurn([RandomCropFlip(2), Cutout(4)])(images)
    torch.manual_seed(3)
    assert torch.equal(found, Cutout(4)(RandomCropFlip(2)(images)))
    with pytest.raises(ValueError, match="callables"):
        InTurn([])
